// SPDX-License-Identifier: Apache-2.0 OR MIT
//! What an answer says about an invocation that did not end well.

use axum::http::StatusCode;
use hearth_pool::{FailureCause, KillCause, Outcome, ThrottleLimit};

use super::Described;

pub(super) fn describe(outcome: &Outcome) -> Described {
    let evidence = serde_json::to_value(outcome).unwrap_or_default();
    let described = match outcome {
        // A caller that asks for the problem of a success has lost the function's answer.
        Outcome::Ok => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The answer was lost.",
            "Look at the server's log.",
        ),
        Outcome::FunctionFailed { cause, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "function_failed",
            failed(cause),
            "Look at the function's log: `hearth logs NAME`.",
        ),
        Outcome::FunctionKilled { cause, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "function_killed",
            killed(cause),
            "Raise the limit in function.toml, or change the function.",
        ),
        Outcome::FunctionTimedOut { limit_ms, .. } => Described::new(
            StatusCode::GATEWAY_TIMEOUT,
            "function_timed_out",
            format!("The function did not end within {limit_ms} ms."),
            "Raise limits.timeout in function.toml, or make the function faster.",
        ),
        Outcome::ResponseTooLarge { limit_bytes, .. } => Described::new(
            StatusCode::BAD_GATEWAY,
            "response_too_large",
            format!("The function wrote more than {limit_bytes} bytes."),
            "Raise limits.response in function.toml.",
        ),
        Outcome::SandboxLost => Described::new(
            StatusCode::BAD_GATEWAY,
            "sandbox_lost",
            "The platform lost the sandbox; this is not the function's fault.",
            "Try again.",
        ),
        Outcome::CannotStart { step, .. } => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "cannot_start",
            format!("No sandbox could be made: {step} failed."),
            "The server's log has the step and its error; `hearth serve --check` checks the host.",
        ),
        Outcome::Throttled {
            limit,
            retry_after_s,
        } => Described::new(
            StatusCode::TOO_MANY_REQUESTS,
            "throttled",
            throttled(*limit),
            "Call less often, or raise scaling.max_instances in function.toml.",
        )
        .retry_after(*retry_after_s),
        Outcome::Overloaded { retry_after_s } => Described::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "overloaded",
            "The server is full: of sandboxes, or of output that callers have not taken.",
            "Try again later, or raise the server's limit.",
        )
        .retry_after(*retry_after_s),
        // Nobody reads this one: the caller is gone.
        Outcome::Cancelled => Described::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "internal",
            "The invocation was cancelled.",
            "Try again.",
        ),
    };
    described.with(evidence)
}

fn failed(cause: &FailureCause) -> String {
    match cause {
        FailureCause::ExitCode { code } => format!("The function exited with code {code}."),
        FailureCause::Trap { .. } => "The function trapped.".to_owned(),
        FailureCause::BadOutput { problem } => {
            format!("The function's output is not what its contract asks for: {problem}.")
        }
        FailureCause::CannotExecute { .. } => "The function's entry cannot be executed.".to_owned(),
    }
}

fn killed(cause: &KillCause) -> String {
    match cause {
        KillCause::Signal { signal } => format!("The function was killed by signal {signal}."),
        KillCause::Seccomp { profile, call } => match call {
            Some(call) => {
                format!(
                    "The function made the system call {call}, for which the profile {profile} ends it."
                )
            }
            None => {
                format!("The function made a system call that the profile {profile} forbids.")
            }
        },
        KillCause::Oom { limit_bytes, .. } => {
            format!("The function ran out of memory; the limit is {limit_bytes} bytes.")
        }
    }
}

fn throttled(limit: ThrottleLimit) -> &'static str {
    match limit {
        ThrottleLimit::QueueLength => "Too many invocations of this function are waiting.",
        ThrottleLimit::QueueWait => {
            "The invocation waited too long for a sandbox of this function."
        }
    }
}
