"""python -m bench.train method=kangaroo model=vicuna-7b data.path=sharegpt.json output=checkpoints/kangaroo"""

from __future__ import annotations

import sys
from pathlib import Path

CONF = Path(__file__).resolve().parents[2] / "conf"


def main(overrides: list[str]) -> int:
    """Compose conf/train.yaml with the overrides and run what its `train._target_` names. Returns the exit status."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from methods.errors import UserError

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", overrides=overrides)
        OmegaConf.resolve(config)
        if config.threads is not None:
            import torch

            torch.set_num_threads(config.threads)
        instantiate(config.train, _convert_="all")
    except (UserError, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error.__cause__, UserError) else error
        print(str(cause).splitlines()[0], file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
