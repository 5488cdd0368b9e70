"""The commands of `optgen`: arguments and printing, nothing else.

Exit codes: 0 all is well, 1 the input is at fault (a spec, a directory that cannot be written), 2 wrong usage.
Modules are imported by the command that needs them, so that each starts quickly.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from optgen.console import print_error, print_json, print_text
from optgen.diagnostics import SpecError, count, format_diagnostics, strictly, suggest
from optgen.errors import UserError
from optgen.garbage import garbage_left

if TYPE_CHECKING:
    from optgen.compiler import Package


class _Commands(TyperGroup):
    """Shows what the user can mend as a message on standard error, and exits with 1; never a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        try:
            return super().main(*args, **kwargs)
        except SpecError as error:
            print_error(f"{error}\n\n{count(error.diagnostics)}")
        except UserError as error:
            print_error(f"error: {error}")
        except OSError as error:
            print_error(f"error: {error}")
        sys.exit(1)


app = typer.Typer(
    cls=_Commands,
    name="optgen",
    help="Compiles declarative optimizer specs into fast torch.optim optimizers.",
    no_args_is_help=True,
    rich_markup_mode="rich" if sys.stdout.isatty() else None,
    pretty_exceptions_enable=False,
)
cache_app = typer.Typer(help="The cache of compiled kernels: its size, and emptying it.")
app.add_typer(cache_app, name="cache")


def _class_names(incomplete: str) -> list[str]:
    """Classes of optgen's own package that a word may become, for the shell's completion."""
    from importlib import import_module

    from optgen.package_name import STOCK_PACKAGE

    try:
        names = list(import_module(STOCK_PACKAGE).CLASSES)
    except ImportError:  # a source checkout that was not built
        return []
    return [name for name in names if name.lower().startswith(incomplete.lower())]


_SPECS_HELP = "Spec files or folders of them. By default the folder specs/, or optgen's own specs where there is none."
SpecsArgument = Annotated[list[Path] | None, typer.Argument(metavar="[SPECS]...", help=_SPECS_HELP, show_default=False)]
FILES = "[spec|stage|shared|vocabulary|functions|classes]"
_ONTO_HELP = "What the specs, stages in their order, are put on: a rule or class of optgen, as adamw, or a spec's path."
OntoOption = Annotated[str | None, typer.Option("--onto", metavar="RULE", help=_ONTO_HELP, show_default=False)]
StrictOption = Annotated[bool, typer.Option("--strict", help="Treat warnings as errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.callback(invoke_without_command=True)
def _main(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from optgen import __version__

        print_text(f"optgen {__version__}")
        raise typer.Exit


@app.command()
def build(
    specs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[SPECS]...", help="Spec files or folders of them; by default specs/.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The package's folder; by default generated/<package>.")
    ] = None,
    package: Annotated[
        str | None, typer.Option(metavar="NAME", help="The package's name; by default that of the specs' folder.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; fail and print what would change.")] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="Compile the common kernels now, not at first use.")
    ] = False,
    arch: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SM,…",
            help="Compile kernels for these GPUs into the package, as sm_80,sm_90: it then needs no compiler.",
            show_default=False,
        ),
    ] = None,
    dist: Annotated[
        bool, typer.Option("--dist", help="Write a pyproject.toml beside the package, once, to distribute it alone.")
    ] = False,
    onto: OntoOption = None,
    strict: StrictOption = False,
) -> None:
    """Generate a package of optimizers from specs."""
    from optgen.distribution import check_file, file_beside, write_file
    from optgen.emit import writer
    from optgen.package_name import DEFAULT_SPECS, PackageNameError, destination
    from optgen.precompile import ArchError, checked_archs, drop_stale_cubins, precompile_cubins
    from optgen.runtime.building.cubins import stored_cubins

    _check_onto(specs, onto)
    paths = _given(specs) or [DEFAULT_SPECS]
    if not specs and not DEFAULT_SPECS.is_dir():
        raise typer.BadParameter("there is no folder specs/ here; name the spec files", param_hint="SPECS")
    try:
        target = destination(paths, package, out)
    except PackageNameError as error:
        raise typer.BadParameter(str(error), param_hint="--package") from error
    if check and (compile or arch):
        raise typer.BadParameter("--check writes nothing, so there is nothing to compile", param_hint="--check")
    try:
        archs = checked_archs(arch) if arch else ()
    except ArchError as error:
        raise typer.BadParameter(str(error), param_hint="--arch") from error
    described = dist and check_file(target.package, target.directory)
    start = time.perf_counter()
    result = _compiled(paths, target.package, onto)
    _warn(result, strict)
    if check:
        difference = writer.check(result, target.directory)
        if difference:
            print_text(difference, end="")
            command = _build_command(specs, out, package, onto)
            print_error(f"error: {target.directory} is not what its specs make; run `{command}`")
            raise typer.Exit(1)
        if dist and not described:
            print_error(f"error: there is no {file_beside(target.directory)}; run without --check")
            raise typer.Exit(1)
        cubins = len(stored_cubins(target.directory))
        beside = f"; {_count(cubins, 'cubin')} beside them, not checked" if cubins else ""
        print_text(f"{target.directory} is up to date: {_count(len(result.classes), 'class', 'classes')}{beside}")
        return
    changed = writer.write(result, target.directory)
    seconds = time.perf_counter() - start
    what = f"{_count(len(changed), 'file')} changed" if changed else "up to date"
    print_text(f"{target.directory}: {_count(len(result.classes), 'class', 'classes')}, {what}, {seconds:.1f} s")
    if dist and described:
        print_text(f"{file_beside(target.directory)} is there already, and was left as it is")
    elif dist:
        print_text(f"{write_file(target.package, target.directory)} written; it is yours to edit")
    dropped = drop_stale_cubins(target.directory)
    if dropped:
        print_text(f"{_count(dropped, 'cubin')} of earlier sources removed")
    if archs:
        made = precompile_cubins(target.package, target.directory, archs)
        print_text(f"{_count(made, 'cubin')} for {', '.join(archs)} in {target.directory / 'cubins'}")
    if compile:
        from optgen.precompile import precompile

        print_text(f"{_count(precompile(target.package, target.directory), 'kernel')} compiled")


@app.command()
def check(specs: SpecsArgument = None, onto: OntoOption = None, strict: StrictOption = False) -> None:
    """Check specs without writing anything."""
    _check_onto(specs, onto)
    paths = _specs(specs)
    result = _compiled(paths, onto=onto)
    _warn(result, strict)
    shown = ", ".join(str(path) for path in paths)
    found = count(result.warnings) or "no errors"
    print_text(f"{shown}: {found}, {_count(len(result.classes), 'class', 'classes')}")


@app.command("list")
def list_classes(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATTERN|SPECS]...",
            help="Parts of names, as adam or '*8bit', of classes or rules to show; spec files, or folders of them, to "
            "read in place of optgen's own.",
            autocompletion=_class_names,
            show_default=False,
        ),
    ] = None,
    onto: OntoOption = None,
    as_json: JsonOption = False,
) -> None:
    """List classes with their memory and traffic, and what their rules are."""
    from optgen.catalogue import asked_for, matching, print_records, records

    specs, patterns = asked_for(words or ())
    _check_onto(specs, onto)
    found = matching(records(_specs(specs), onto), patterns)
    if as_json:
        print_json(found)
    else:
        print_records(found)


@app.command()
def explain(
    name: Annotated[
        str,
        typer.Argument(metavar="CLASS", help="A class, as `optgen list` shows it.", autocompletion=_class_names),
    ],
    specs: Annotated[
        list[Path] | None, typer.Option("--specs", metavar="PATH", help=_SPECS_HELP, show_default=False)
    ] = None,
    onto: OntoOption = None,
    as_json: JsonOption = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write it as a page for a browser instead.")
    ] = None,
    code: Annotated[
        bool, typer.Option("--code", help="Print instead the kernel of this class alone, under its default settings.")
    ] = False,
    target: Annotated[
        Literal["cpu", "cuda", "torch"] | None,
        typer.Option(help="Target of --code: C++, CUDA, or plain torch; by default cpu.", show_default=False),
    ] = None,
    trace: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="STEP", help="Print instead every value of this step of two small tensors, in float64."
        ),
    ] = None,
) -> None:
    """Show a class: its equations, the kinds of its values, its passes, memory traffic and files."""
    from optgen.explain import class_record, explanation_record, print_explanation, print_trace

    if as_json and html is not None:
        raise typer.BadParameter("--json prints and --html writes; give one of them", param_hint="--html")
    if trace is not None and (as_json or html is not None or code):
        other = "--json" if as_json else "--code" if code else "--html"
        raise typer.BadParameter(f"--trace prints in place of what {other} has; give one of them", param_hint=other)
    if code and (as_json or html is not None):
        other = "--json" if as_json else "--html"
        raise typer.BadParameter(f"--code prints code in place of what {other} has; give one of them", param_hint=other)
    if target is not None and not code:
        raise typer.BadParameter(f"--target goes with --code; write --code --target {target}", param_hint="--target")
    _check_onto(specs, onto)
    classes = {info.name: info for info in _compiled(_specs(specs), onto=onto, of=name).classes}
    if name not in classes:
        classes = {info.name: info for info in _compiled(_specs(specs), onto=onto).classes}
        hint = suggest(name, classes) or f"there are {', '.join(classes)}"
        print_error(f"error: there is no class `{name}`: {hint}")
        raise typer.Exit(1)
    info = classes[name]
    if html is not None:
        from optgen.page import write_page

        write_page(info, html)
        print_text(f"{html} written: open it in a browser; it needs nothing else")
    elif code:
        print_text(info.code(target or "cpu"), end="")
    elif as_json:
        print_json(class_record(info) | explanation_record(info))
    elif trace is not None:
        print_trace(info, trace)
    else:
        print_explanation(info)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="The rule's name, such as my_optimizer.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write it; by default <name>.yaml.")] = None,
) -> None:
    """Write a working, commented spec to edit."""
    from optgen.new import SCHEMA, spec_name, write_new_spec, write_schema
    from optgen.spec.names import class_name

    path = write_new_spec(name, out)
    schema = path.parent / SCHEMA
    if not write_schema(path.parent):
        print_error(f"warning: {schema} is not optgen's, and was left as it is: editors find no schema of {path}")
    print_text(f"{path} written: a working rule; {schema}: for editors. Edit it, then:")
    print_text(f"  {shlex.join(['optgen', 'check', str(path)])}")
    program = f"import optgen; print(optgen.load({json.dumps(str(path))}).{class_name(spec_name(name))})"
    print_text(f"  {shlex.join(['python', '-c', program])}")


@app.command()
def schema(
    kind: Annotated[str, typer.Argument(metavar=FILES, help="Which kind of file; by default spec.")] = "spec",
) -> None:
    """Print the JSON Schema of spec files, for editors."""
    from optgen.spec.json_schema import SCHEMAS, json_schema

    if kind not in SCHEMAS:
        raise typer.BadParameter(f"{kind!r} is not one of {', '.join(SCHEMAS)}", param_hint=FILES)
    print_json(json_schema(kind))


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Show what this machine offers to optimizers, and how to add what is missing."""
    from dataclasses import asdict

    from optgen.doctor import examine, is_usable, print_findings

    findings = examine()
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_findings(findings)
    if not is_usable(findings):
        raise typer.Exit(1)


@cache_app.callback(invoke_without_command=True)
def cache(ctx: typer.Context) -> None:
    """The cache of compiled kernels: its size, and emptying it."""
    if ctx.invoked_subcommand is None:
        cache_size()


@cache_app.command("size")
def cache_size() -> None:
    """Print where the cache is and how large."""
    from optgen.doctor import readable_size
    from optgen.runtime.building import cache as kernels

    files, size = kernels.cache_size()
    print_text(f"{kernels.cache_dir()}: {_count(files, 'file')}, {readable_size(size)}")


@cache_app.command("clear")
def cache_clear() -> None:
    """Remove all compiled kernels; they are compiled again when they are used."""
    from optgen.doctor import readable_size
    from optgen.runtime.building import cache as kernels

    files, size = kernels.clear_cache()
    print_text(f"{kernels.cache_dir()}: {_count(files, 'file')} removed, {readable_size(size)}")


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the picture of the loss curves goes.", show_default=True)
    ] = Path("demo"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of training with each optimizer.")] = 400,
) -> None:
    """Train a small transformer with torch's AdamW and with generated optimizers, and compare them."""
    from optgen.demo import run_demo

    run_demo(out, steps)


@app.command()
def bench(
    classes: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CLASS]...",
            help="Classes, as `optgen list` shows them; by default AdamW32bit and AdamW8bit, with --bits AdamW.",
            autocompletion=_class_names,
            show_default=False,
        ),
    ] = None,
    like: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="The shapes of a known model, as gpt2 (the default), bert-base, llama-3.2-1b, or of a config.json "
            "or model of Hugging Face.",
        ),
    ] = None,
    shapes: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Shapes of your own model: a list (text or JSON), a torch checkpoint, safetensors."
        ),
    ] = None,
    peers: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…",
            help="Libraries to compare with: torch, compile, bitsandbytes, bitsandbytes-cpu-fork, torchao, none; "
            "by default torch, bitsandbytes, torchao.",
        ),
    ] = None,
    bits: Annotated[
        str | None, typer.Option(metavar="BITS,…", help="Bits of the states of each class; by default its own.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="DTYPE", help="dtype of parameters and gradients: float32, bfloat16, float16.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="DEVICE", help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="How long to measure, first steps apart.")] = 20.0,
    specs: Annotated[
        list[Path] | None,
        typer.Option("--specs", metavar="PATH", help="Measure classes of these specs instead.", show_default=False),
    ] = None,
    png: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw time against the roofline, and memory per parameter.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Measure optimizers on the shapes of a model, side by side with torch, bitsandbytes and torchao."""
    from optgen.bench import run_bench
    from optgen.bench.request import RequestError, request_of

    try:
        request = request_of(
            classes=classes or (),
            like=like,
            shapes=shapes,
            peers=peers,
            bits=bits,
            dtype=dtype,
            device=device,
            seconds=seconds,
            specs=_given(specs),
            png=png,
            as_json=as_json,
        )
    except RequestError as error:
        raise typer.BadParameter(str(error), param_hint=error.option) from error
    run_bench(request)


def _given(specs: Sequence[Path] | None) -> list[Path]:
    return list(dict.fromkeys(specs or ()))


def _specs(specs: Sequence[Path] | None) -> list[Path]:
    from optgen.package_name import DEFAULT_SPECS
    from optgen.paths import specs_dir

    return _given(specs) or [DEFAULT_SPECS if DEFAULT_SPECS.is_dir() else specs_dir()]


def _check_onto(specs: Sequence[Path] | None, onto: str | None) -> None:
    if onto is not None and not specs:
        raise typer.BadParameter("name the files of the stages that are put on it", param_hint="--onto")


def _compiled(
    paths: Sequence[Path], package: str | None = None, onto: str | None = None, of: str | None = None
) -> Package:
    """The package of some specs; without a name, where nothing is written, theirs if they are the stock ones."""
    with garbage_left():
        from optgen.compiler import compile_specs
        from optgen.package_name import STOCK_PACKAGE, is_stock

        return compile_specs(paths, package or (STOCK_PACKAGE if is_stock(paths) else None), onto, of)


def _warn(package: Package, strict: bool) -> None:
    """Print what of the specs was hardly meant.

    Raises:
        SpecError: if `strict`, and there is anything.
    """
    if strict and package.warnings:
        raise strictly(package.warnings)
    if package.warnings:
        print_error(f"{format_diagnostics(package.warnings)}\n")


def _build_command(specs: Sequence[Path] | None, out: Path | None, package: str | None, onto: str | None) -> str:
    words = ["optgen", "build", *(str(path) for path in specs or ())]
    words += ["--onto", onto] if onto else []
    words += ["--out", str(out)] if out else []
    words += ["--package", package] if package else []
    return shlex.join(words)


def _count(number: int, one: str, many: str = "") -> str:
    return f"{number} {one if number == 1 else many or one + 's'}"
