"""CUDA graphs without a GPU: operations are recorded and replayed on the CPU.

    tape.py      records the operations of one call, undoes their effects, and replays them into the same memory
    replays.py   checks that replays equal eager steps bit for bit
    cuda.py      a stand-in for torch.cuda
"""

from proofs.simulated.cuda import PREVIOUS_ERROR, SimulatedCuda
from proofs.simulated.replays import assert_replays_equal_eager
from proofs.simulated.tape import CaptureRefused, StaleMemory, Tape, record, recording, same_bits, storage_key

__all__ = ["PREVIOUS_ERROR", "CaptureRefused", "SimulatedCuda", "StaleMemory", "Tape", "assert_replays_equal_eager",
           "record", "recording", "same_bits", "storage_key"]
