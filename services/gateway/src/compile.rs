// SPDX-License-Identifier: Apache-2.0 OR MIT
//! Wasm modules become machine code in a sandbox of their own: compiling a hostile module can take any amount of time
//! and memory, so it is run as any untrusted program is, by the same door.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use hearth_pool::{
    Call, FailureCause, InvocationId, KillCause, Limits, Outcome, OutputStream, Program, Reply,
    Scaling, Target,
};
use hearth_protocol::{
    NameProblem, SmallName, TreeId,
    spawner::{Profile, Root},
};

use crate::{app::Shard, problem::RequestError};

/// The compiler's file in its tree, and its name where it counts as a function. No user's function can have it.
const COMPILER: &str = "hearth-wasm-compiler";

/// The exit code by which the compiler says that the module is at fault (EX_DATAERR of sysexits(3)).
const EXIT_BAD_MODULE: u32 = 65;

/// An 18 MiB Python component, far beyond the modules of this version, compiles in 6 s on two idle cores.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Cranelift needs about thirty times a large module's size.
const MEMORY_BYTES: u64 = 1 << 30;

/// The largest compiled code: machine code is two to six times the module.
const ARTIFACT_BYTES_MAX: u64 = 256 << 20;

/// The compiler as the pool runs it.
pub(crate) fn target(tree: &TreeId, compilations_max: u32) -> Result<Arc<Target>, NameProblem> {
    Ok(Arc::new(Target {
        function: SmallName::new(COMPILER)?,
        revision: tree.clone(),
        tree: tree.clone(),
        program: Program::Native {
            profile: Profile::Default,
            base: SmallName::new("static")?,
            root: Root::ReadOnly,
            entry: COMPILER.to_owned(),
        },
        env: Vec::new(),
        limits: Limits {
            memory_bytes: MEMORY_BYTES,
            cpu_millis: 1000,
            // One thread per core is what it may start with; compiling itself is single-threaded.
            pids: 64,
            timeout: TIMEOUT,
            scratch_bytes: 1 << 20,
            // The archive's limit is the one that counts.
            request_bytes: u64::MAX,
            response_bytes: ARTIFACT_BYTES_MAX,
            log_bytes: 64 << 10,
        },
        scaling: Scaling {
            instances_max: compilations_max,
            inflight_max: 1,
            warm_min: 0,
            // Deploys come in bursts, if at all.
            idle_timeout: Duration::from_secs(10),
        },
    }))
}

/// Compiles a module.
///
/// # Errors
/// [`RequestError::BadModule`] where the module is at fault, which includes that it takes too much to compile.
pub(crate) async fn compile(shard: &Shard, module: Bytes) -> Result<Bytes, RequestError> {
    let app = &shard.app;
    let received = Instant::now();
    let call = Call {
        id: InvocationId::new(),
        begun: received,
        received,
        env: Vec::new(),
        body: module,
        check: None,
    };
    match app.pool.invoke(shard.index, &app.compiler, call).await {
        Reply::Whole {
            outcome: Outcome::Ok,
            output,
            ..
        } => Ok(output),
        Reply::Whole { outcome, .. } => Err(error_of(outcome)),
        Reply::Streaming { output, .. } => collect(output).await,
    }
}

async fn collect(mut output: OutputStream) -> Result<Bytes, RequestError> {
    let mut artifact = Vec::new();
    while let Some(piece) = std::future::poll_fn(|cx| output.poll_next(cx)).await {
        // The pool ends an output that passes the target's limit.
        artifact.extend_from_slice(&piece.map_err(error_of)?);
    }
    Ok(artifact.into())
}

fn error_of(outcome: Outcome) -> RequestError {
    let bad = |problem: String| RequestError::BadModule {
        problems: vec![problem],
    };
    match outcome {
        Outcome::FunctionFailed {
            cause: FailureCause::ExitCode {
                code: EXIT_BAD_MODULE,
            },
            stderr_tail,
        } => RequestError::BadModule {
            problems: stderr_tail,
        },
        Outcome::FunctionTimedOut { limit_ms, .. } => {
            bad(format!("compiling it takes longer than {limit_ms} ms"))
        }
        Outcome::FunctionKilled {
            cause: KillCause::Oom { limit_bytes, .. },
            ..
        } => bad(format!(
            "compiling it takes more than {limit_bytes} bytes of memory"
        )),
        Outcome::ResponseTooLarge { limit_bytes, .. } => bad(format!(
            "its compiled code is larger than {limit_bytes} bytes"
        )),
        other => RequestError::Sandbox(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_that_does_not_compile_is_told_from_a_compiler_that_does_not_work() {
        let exit = |code| Outcome::FunctionFailed {
            cause: FailureCause::ExitCode { code },
            stderr_tail: vec!["line".to_owned()],
        };
        assert!(
            matches!(error_of(exit(EXIT_BAD_MODULE)), RequestError::BadModule { problems } if problems == ["line"])
        );
        assert!(matches!(error_of(exit(1)), RequestError::Sandbox(_)));
        let slow = Outcome::FunctionTimedOut {
            limit_ms: 1,
            output_bytes: 0,
        };
        assert!(matches!(error_of(slow), RequestError::BadModule { .. }));
        assert!(matches!(
            error_of(Outcome::SandboxLost),
            RequestError::Sandbox(_)
        ));
    }
}
