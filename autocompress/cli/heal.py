"""``autocompress heal``: train the stored weights of a compressed model."""

from __future__ import annotations

from autocompress.cli.output import console, print_json
from autocompress.cli.requesting import Json, takes
from autocompress.requests.verbs import HealRequest


@takes(HealRequest)
def heal(request: HealRequest, *, as_json: Json = False) -> None:
    r"""Train the stored weights of a compressed model to predict what the dense one predicts.

    \b
    autocompress heal                                   the best trial of the latest study
    autocompress heal demo-10x --trial knee --steps 200
    autocompress heal small-model --out healed-model    an exported folder

    What is trained is what is stored: codes, scales, factors, norms and biases. Bytes and form
    stay, unless --shrink cuts ranks. A healed plan is a further trial of its study, to be picked
    and exported like any other. Stop it at any time before its end: the same command goes on.
    After its end the best trial may be the healed one, and would be healed further: name a trial by
    its number to start from that one again.
    """
    from autocompress.api.heal_function import heal as run
    from autocompress.cli.heal_view import print_healed

    healed = run(request)
    if as_json:
        print_json(healed.to_dict())
    else:
        print_healed(healed, console)
