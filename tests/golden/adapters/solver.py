"""Whole trajectories of the solvers under an analytic model.

The model is an arithmetic formula in the case's args; it is read as a syntax tree, never executed as code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from s2v_core.sampling.sigmas import make_schedule
from s2v_core.sampling.solvers import SOLVER_STEPS, History

from ..case import Case

# Cases that do not state their model were made with this one.
USUAL_MODEL = "v = 0.8*x - 0.6*c0 + 0.25*sin(0.004*t + 1.7*c1) + 0.1*tanh(x*c1), t = integer timestep"
# What the reference's solvers are set to; a case recorded with other settings is not ours to reproduce.
REFERENCE_SETTINGS = {"solver_order": {2}, "solver_type": {"bh2", "midpoint"}, "lower_order_final": {True}}

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}
FUNCTIONS = {name: getattr(torch, name) for name in ("sin", "cos", "tanh", "exp", "sigmoid")}


def evaluate(node: ast.AST, names: dict[str, Tensor]) -> Tensor:
    if isinstance(node, ast.Constant):
        return torch.tensor(node.value, dtype=torch.float32)
    if isinstance(node, ast.Name):
        return names[node.id]
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](evaluate(node.left, names), evaluate(node.right, names))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -evaluate(node.operand, names)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        return FUNCTIONS[node.func.id](*(evaluate(argument, names) for argument in node.args))
    raise AssertionError(f"not arithmetic: {ast.dump(node)}")


def analytic_model(text: str, constants: dict[str, Tensor]) -> Callable[[Tensor, float], Tensor]:
    """"v = <formula of x, t and the constants>, <remarks>" as a function of x and t."""
    formula = text.partition("=")[2].rpartition(", t =")[0] or text.partition("=")[2]
    tree = ast.parse(formula.strip(), mode="eval").body
    return lambda x, t: evaluate(tree, {**constants, "x": x, "t": torch.tensor(t, dtype=torch.float32)})


def solver(case: Case) -> dict[str, Tensor]:
    args = case.args
    for name, values in REFERENCE_SETTINGS.items():
        assert name not in args or args[name] in values, f"{case.name}: recorded with {name}={args[name]}"
    constants = {name[3:]: tensor for name, tensor in case.tensors.items() if name.startswith("in.c")}
    model = analytic_model(args.get("model", USUAL_MODEL), constants)
    schedule, step = make_schedule(args["solver"], args["steps"], args["shift"]), SOLVER_STEPS[args["solver"]]
    xs, vs, history = [case.tensors["in.x0"]], [], History()
    for i, timestep in enumerate(schedule.timesteps.tolist()):
        vs.append(model(xs[-1], timestep))
        x, history = step(schedule.sigmas.tolist(), i, xs[-1], vs[-1], history)
        xs.append(x)
    return {
        "out.sigmas": schedule.sigmas,
        "out.timesteps": schedule.timesteps,
        "out.v": torch.stack(vs),
        "out.x": torch.stack(xs),
    }


KINDS = {"solver": solver}
