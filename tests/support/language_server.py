"""Language servers, asked what they show in an editor: basedpyright, which is pyright in a wheel, and that of YAML."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

COMMAND = [sys.executable, "-c", "from basedpyright.langserver import main; main()", "--stdio"]
PLAIN = {"contentFormat": ["plaintext"], "documentationFormat": ["plaintext"]}
CAPABILITIES = {
    "workspace": {"configuration": True},
    "textDocument": {"hover": PLAIN, "signatureHelp": {"signatureInformation": PLAIN}},
}


class LanguageServer:
    """A server for a folder; ends with its `with`.

    Args:
        folder: Folder of the files that it is asked about.
        paths: Folders of packages that are not installed.
        command: Its command.
        language: Language of the files.
    """

    def __init__(
        self, folder: Path, paths: Sequence[Path] = (), command: Sequence[str] = COMMAND, language: str = "python"
    ) -> None:
        self.folder, self.language, self.asked = folder, language, 0
        self.diagnostics: dict[str, list[dict[str, Any]]] = {}
        analysis = {"extraPaths": [str(path) for path in paths], "typeCheckingMode": "strict"}
        self.settings: dict[str, Any] = {
            "python": {"pythonPath": sys.executable},
            "python.analysis": analysis,
            "basedpyright.analysis": analysis,
            "yaml": {"schemaStore": {"enable": False}},  # it would be fetched
        }
        self.process = subprocess.Popen(
            list(command), cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        root = {"uri": folder.as_uri(), "name": "folder"}
        start = {"processId": os.getpid(), "capabilities": CAPABILITIES, "workspaceFolders": [root]}
        self.ask("initialize", {**start, "rootUri": folder.as_uri()})
        self.tell("initialized", {})

    def __enter__(self) -> LanguageServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()

    def open(self, name: str, text: str) -> str:
        """Open a file of this text in the editor; return its address."""
        uri = (self.folder / name).as_uri()
        document = {"uri": uri, "languageId": self.language, "version": 1, "text": text}
        self.tell("textDocument/didOpen", {"textDocument": document})
        return uri

    def at(self, request: str, uri: str, line: int, character: int) -> Any:
        """Answer to a request about a place of a file, counted from 0."""
        place = {"textDocument": {"uri": uri}, "position": {"line": line, "character": character}}
        return self.ask(f"textDocument/{request}", place)

    def errors(self, uri: str) -> list[str]:
        """Messages of the errors that it finds in a file."""
        while uri not in self.diagnostics:
            self._take(self._read())
        return [found["message"] for found in self.diagnostics[uri] if found["severity"] == 1]

    def tell(self, method: str, parameters: dict[str, Any]) -> None:
        """Send a notification."""
        self._send({"method": method, "params": parameters})

    def ask(self, method: str, parameters: dict[str, Any]) -> Any:
        """Send a request; return the answer's result."""
        self.asked += 1
        number = self.asked
        self._send({"id": number, "method": method, "params": parameters})
        while True:
            message = self._read()
            if message.get("id") == number and "method" not in message:
                return message["result"]
            self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        """Keep diagnostics, and answer what it asks of an editor."""
        if message.get("method") == "textDocument/publishDiagnostics":
            self.diagnostics[message["params"]["uri"]] = message["params"]["diagnostics"]
        elif "id" in message and "method" in message:
            items = message["params"].get("items", []) if message["method"] == "workspace/configuration" else []
            self._send({"id": message["id"], "result": [self.settings.get(item.get("section")) for item in items]})

    def _send(self, message: dict[str, Any]) -> None:
        body = json.dumps({"jsonrpc": "2.0", **message}).encode()
        assert self.process.stdin is not None
        self.process.stdin.write(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        length = 0
        while line := self.process.stdout.readline().strip():
            key, _, value = line.partition(b":")
            length = int(value) if key.lower() == b"content-length" else length
        assert length, "the language server has ended"
        message: dict[str, Any] = json.loads(self.process.stdout.read(length))
        return message
