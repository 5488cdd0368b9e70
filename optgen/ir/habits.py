"""Help for expressions written out of habit of torch, numpy or C: the same in the equation language.

Input: Python's AST of an expression or statement outside of the language. Output: a line of help, or "". Nothing is
decided here: whatever is put into other words has been refused already.
"""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping, Sequence

from optgen.diagnostics import suggest
from optgen.operations import CALLED, OF_SHAPES

LIBRARIES = frozenset(("np", "numpy", "torch", "math", "jnp", "jax", "tf", "F", "nn", "special", "linalg"))
CALLS: Mapping[str, str] = {
    "absolute": "abs(x)", "add": "x + y", "addcdiv": "x + y / z", "addcmul": "x + y * z", "average": "mean(x)",
    "cbrt": "sign(x) * abs(x) ** (1 / 3)", "ceil": "-floor(-x)", "clamp_max": "min(x, y)",
    "clamp_min": "max(x, y)", "clip": "clamp(x, y, z)", "clone": "x", "copy": "y",
    "copysign": "where(y < 0, -abs(x), abs(x))", "detach": "x", "div": "x / y", "divide": "x / y", "dot": "sum(x * y)",
    "double": "x", "eq": "x == y", "exp2": "2 ** x", "expit": "sigmoid(x)", "expm1": "exp(x) - 1",
    "fabs": "abs(x)", "fill": "y", "float": "x", "floor_divide": "floor(x / y)", "fmax": "max(x, y)",
    "fmin": "min(x, y)", "fmod": "x - y * sign(x / y) * floor(abs(x / y))", "ge": "x >= y", "gt": "x > y",
    "hypot": "sqrt(x * x + y * y)", "inner": "sum(x * y)", "isinf": "x == x and not isfinite(x)", "isnan": "x != x",
    "item": "x", "le": "x <= y", "lerp": "x + z * (y - x)", "log10": "log(x) / log(10)", "log1p": "log(1 + x)",
    "log2": "log(x) / log(2)", "logical_and": "x and y", "logical_not": "not x", "logical_or": "x or y", "lt": "x < y",
    "masked_fill": "where(y, z, x)", "maximum": "max(x, y)", "minimum": "min(x, y)", "mul": "x * y",
    "multiply": "x * y", "nan_to_num": "where(isfinite(x), x, 0)", "ne": "x != y", "neg": "-x", "negative": "-x",
    "numel": "numel", "pow": "x ** y", "power": "x ** y", "reciprocal": "1 / x", "relu": "max(x, 0)",
    "remainder": "x % y", "round": "floor(x + 0.5)", "sgn": "sign(x)",
    "square": "x * x", "sub": "x - y",
    "subtract": "x - y", "true_divide": "x / y", "trunc": "sign(x) * floor(abs(x))",
    "vdot": "sum(x * y)", "vector_norm": "norm(x)", "zero": "0 * x",
}  # fmt: skip
OPERATORS: Mapping[type[ast.operator], str] = {
    ast.FloorDiv: "floor(x / y)",
    ast.BitXor: "x ** y",
    ast.BitAnd: "x and y",
    ast.BitOr: "x or y",
    ast.LShift: "x * 2 ** y",
    ast.RShift: "floor(x / 2 ** y)",
}
HINTS: Mapping[type[ast.AST], str] = {
    ast.Assert: "`refusals` test settings, not values of tensors",
    ast.Attribute: "call functions by their plain names, as in `sqrt(x)`",
    ast.For: "every statement already acts on all elements; use `sum`, `norm` or `where`",
    ast.FunctionDef: "define it in `functions:`, and call it here",
    ast.IfExp: "use `where(condition, a, b)`, or `if` for what is fixed before the step",
    ast.Lambda: "only assignments and `if` are allowed",
    ast.MatMult: "a product of matrices is `matmul(a, b)`; `sum(a * b)` is the inner product of two tensors",
    ast.NamedExpr: "write the assignment as a statement of its own",
    ast.Subscript: "there is no indexing; values act on all elements at once",
    ast.While: "every statement already acts on all elements; use `sum`, `norm` or `where`",
}
STATEMENT = "only assignments and `if` are allowed"
EXPRESSION = "only assignments, `if`, numbers, names, operators and the listed functions are allowed"
NAMES: Mapping[str, Sequence[str]] = {
    "param": ("p", "w", "theta", "weight", "weights"),
    "grad": ("g", "dw", "gradient"),
    "step": ("t", "k", "iteration", "num_steps"),
    "lr": ("alpha", "eta", "learning_rate", "step_size"),
    "eps": ("epsilon",),
    "weight_decay": ("wd", "decay", "lambda_"),
    "exp_avg": ("m", "momentum", "mu"),
    "exp_avg_sq": ("v", "nu"),
}
"""Other names for names of this language, and for usual settings and states."""

LIMIT = 100
"""Characters of the user's own text that help shows; what is longer is described in general."""


def instead(node: ast.AST) -> str:
    """Suggest a replacement for a statement or an expression that is not in the language; "" where there is none."""
    match node:
        case ast.Expr(value=ast.Compare(left=ast.Name(id=name), ops=[ast.Eq()], comparators=[value])):
            return _written(f"{name} = {ast.unparse(value)}") or "an assignment has one `=`"
        case ast.Expr(value=value):
            target = _changed_in_place(value)
            if target:
                return _written(f"{target} = {_translated(value)}") or f"write `{target} = ...`"
            return "nothing keeps this value; write `name = expression`"
        case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
            whole = ast.BinOp(ast.Name(id=target.id), op, value)
            return _written(f"{name} = {_translated(whole) or ast.unparse(whole)}") or "write `x = x + ...`"
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return _written(f"{name} = {ast.unparse(value)}") or "kinds are inferred; write `name = expression`"
        case ast.Assign(targets=[ast.Name(), ast.Name(), *_]):
            return "assign one name a line"
        case ast.Assign(targets=[ast.Tuple() | ast.List()]):
            return "write `a, b = x, y`, with a value for each name, or assign one name a line"
        case ast.Return(value=ast.expr() as value):
            return _written(f"update = {ast.unparse(value)}") or "write `update = ...`"
        case ast.Compare(ops=[_, _, *_]):
            return _written(_unchained(node))
        case ast.BinOp(op=ast.MatMult() as op):
            return HINTS[type(op)]
        case ast.stmt():
            return HINTS.get(type(node), STATEMENT)
        case ast.Constant(value=str()):
            return 'text is compared in `if`, as in `if mode == "a":`'
        case ast.Constant(value=None):
            return "`if x is not None:` asks whether an optional hyperparameter is given"
        case ast.IfExp():
            return HINTS[ast.IfExp]
        case ast.expr():
            return _written(_translated(node)) or HINTS.get(type(_innermost(node)), EXPRESSION)
    return EXPRESSION


def instead_of_call(node: ast.Call, name: str) -> str:
    """Suggest a replacement for a call of an unknown function, or with arguments that the function does not take."""
    text = _written(_translated(node))
    if text:
        return text
    if name in OF_SHAPES:
        return "it is for rules that have a state which is a matrix, as `{shape: [rows, rank]}`"
    if name == "every" and len(node.args) == 1:
        return f"`every` stands in `if every(n):`; a condition on values is `step % {ast.unparse(node.args[0])} == 0`"
    if name in CALLS and CALLS[name] not in "xyz":  # a letter alone stands for an argument, and says nothing
        return f"write `{CALLS[name]}`"
    return f"write `{CALLED[name].signature}`" if name in CALLED else ""


def instead_of_name(name: str, known: Collection[str]) -> str:
    """Suggest the declared name that an undeclared one may stand for."""
    other = next((own for own, names in NAMES.items() if name in names and own in known), "")
    if other:
        return f"here it is called `{other}`"
    return suggest(name, known) or "declare it under `hyperparameters` or `states`, or assign it above"


def _written(text: str) -> str:
    return f"write `{text}`" if text and "\n" not in text and len(text) <= LIMIT else ""


def _translated(node: ast.expr) -> str:
    """An expression in the words of the language; "" if that cannot be said, or says no more."""
    if isinstance(node, ast.Starred):  # no expression of its own
        return ""
    before = ast.unparse(node)
    after = _Translator().visit(ast.parse(before, mode="eval").body)
    text = ast.unparse(after)
    return text if text != before and _is_in_language(after) else ""


def _is_in_language(node: ast.AST) -> bool:
    for part in ast.walk(node):
        match part:
            case ast.Call(func=ast.Name(id=name)) if name in CALLED:
                pass
            case ast.BinOp(op=op) if not isinstance(op, ast.Add | ast.Sub | ast.Mult | ast.Div | ast.Pow | ast.Mod):
                return False
            case ast.Call() | ast.Attribute() | ast.Subscript() | ast.IfExp() | ast.Lambda() | ast.NamedExpr():
                return False
            case ast.Constant(value=str() | None) | ast.Invert() | ast.List() | ast.Tuple() | ast.Starred():
                return False
            case ast.comprehension() | ast.Set() | ast.Dict() | ast.JoinedStr():
                return False
    return True


def _innermost(node: ast.expr) -> ast.AST:
    """The first part of an expression that there is a hint for."""
    return next((part for part in ast.walk(node) if type(part) in HINTS), node)


def _changed_in_place(node: ast.expr) -> str:
    """The tensor that a call such as `x.mul_(y).add_(z)` changes, or ""."""
    changed, target = False, node
    while isinstance(target, ast.Call) and isinstance(target.func, ast.Attribute):
        changed = changed or target.func.attr.endswith("_")
        target = target.func.value
    if isinstance(target, ast.Attribute) and target.attr == "data":
        target = target.value
    return target.id if changed and isinstance(target, ast.Name) and target.id not in LIBRARIES else ""


def _unchained(node: ast.Compare) -> str:
    """`a < b < c` as `a < b and b < c`, and `a < b & c < d` as what was meant by it."""
    parts, left = [], node.left
    for op, right in zip(node.ops, node.comparators, strict=True):
        match right:
            case ast.BinOp(left=first, op=ast.BitAnd() | ast.BitOr() as bit, right=second):
                word = "and" if isinstance(bit, ast.BitAnd) else "or"
                parts.append(f"{ast.unparse(ast.Compare(left, [op], [first]))} {word}")
                left = second
            case _:
                parts.append(f"{ast.unparse(ast.Compare(left, [op], [right]))} and")
                left = right
    return " ".join(parts).rsplit(" ", 1)[0]


class _Translator(ast.NodeTransformer):
    """Puts what has a word in the language into it, from the leaves up."""

    def visit_Call(self, node: ast.Call) -> ast.expr:
        self.generic_visit(node)
        match node.func:
            case ast.Name(id=name):
                args = list(node.args)
            case ast.Attribute(value=value, attr=name):
                args = list(node.args) if _root(value) in LIBRARIES else [value, *node.args]
            case _:
                return node
        name = name.rstrip("_") if isinstance(node.func, ast.Attribute) else name
        keywords = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg}
        return _called(name, args, keywords) or node

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        self.generic_visit(node)
        template = OPERATORS.get(type(node.op), "")
        return (template and _filled(template, {"x": node.left, "y": node.right})) or node

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        self.generic_visit(node)
        return ast.UnaryOp(ast.Not(), node.operand) if isinstance(node.op, ast.Invert) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Attribute(value=ast.Name(id="self"), attr=attr):
                return ast.Name(id=attr)
            case ast.Attribute(attr="grad"):
                return ast.Name(id="grad")
            case ast.Attribute(value=value, attr="data") if _root(value) not in LIBRARIES:
                return value
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        self.generic_visit(node)
        match node:
            case ast.Subscript(value=ast.Name(), slice=ast.Constant(value=str() as name)) if name.isidentifier():
                return ast.Name(id=name)
        return node


def _called(name: str, args: Sequence[ast.expr], keywords: Mapping[str, ast.expr]) -> ast.expr | None:
    """A function of another library applied to arguments, in the words of the language."""
    given = dict(zip("xyz", args, strict=False))
    for keyword, letter in (("input", "x"), ("other", "y"), ("min", "y"), ("max", "z"), ("weight", "z")):
        if keyword in keywords:
            given[letter] = keywords[keyword]
    scale = keywords.get("alpha", keywords.get("value"))
    if scale is not None and "y" in given:
        given["y"] = ast.BinOp(scale, ast.Mult(), given["y"])
    along = keywords.get("dim", keywords.get("axis"))
    if name in ("sum", "mean") and along is not None:
        line = {"-1": "row", "1": "row", "0": "col", "-2": "col"}.get(ast.unparse(along))
        return _filled(f"{line}_{name}(x)", given) if line else None
    if name == "norm":
        order = ast.unparse(keywords.get("p", keywords.get("ord", given.get("y", ast.Constant(value=2)))))
        template = {"1": "sum(abs(x))", "2": "norm(x)", "inf": "absmax(x)"}.get(order.rpartition(".")[2].strip("'\""))
        return _filled(template, given) if template and along is None else None
    if name in ("clamp", "clip"):
        template = "clamp(x, y, z)" if {"y", "z"} <= given.keys() else "max(x, y)" if "y" in given else "min(x, z)"
        return _filled(template, given)
    match name, args:
        case "max" | "amax", [ast.Call(func=ast.Name(id="abs"), args=[inner])] if not keywords:
            return ast.Call(ast.Name(id="absmax"), [inner], [])
    if name in CALLS:
        return _filled(CALLS[name], given)
    known = name in CALLED and not keywords and len(args) == CALLED[name].arity
    return ast.Call(ast.Name(id=name), list(args), []) if known else None


def _filled(template: str, given: Mapping[str, ast.expr]) -> ast.expr | None:
    """A template with its arguments; None where some are missing."""
    tree = ast.parse(template, mode="eval").body
    if not set(_letters(tree)) <= given.keys():
        return None

    class Filler(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            return given.get(node.id, node)

    filled: ast.expr = Filler().visit(tree)
    return filled


def _letters(tree: ast.AST) -> Iterator[str]:
    return (part.id for part in ast.walk(tree) if isinstance(part, ast.Name) and part.id in "xyz")


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""
