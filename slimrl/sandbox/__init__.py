"""The sandbox: programs that a model wrote are run without a network, without files but their own, and within limits.

    with Sandbox(SandboxConfig()) as sandbox:
        outcome = sandbox.run("print(6 * 7)")      # Outcome(stdout="42\\n", stderr="", exit_code=0, ended_by="")

docs/sandbox.md says what each isolation guarantees. This room knows settings, and nothing of models, tasks and rewards.
"""

from slimrl.sandbox.running import EndedBy as EndedBy
from slimrl.sandbox.running import Outcome as Outcome
from slimrl.sandbox.running import Sandbox as Sandbox
from slimrl.sandbox.running import SandboxError as SandboxError
from slimrl.sandbox.running import Way as Way
from slimrl.sandbox.running import working as working
