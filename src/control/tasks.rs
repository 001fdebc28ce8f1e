//! Tasks that live as long as the router: one that panics is begun anew, as a worker goes on with its next turn.
//!
//! A panic is a bug. It is logged with the name of its task and counted, and health, flow events or bans are not without
//! theirs until somebody comes to look. `/healthz` stays as it is: what restarts a router that is not alive would end all its
//! connections for that.

use std::{sync::Arc, time::Duration};

use tokio::{runtime::Handle, task::JoinError};

use crate::stats::{Process, ProcessCounter};

/// Before a task that panicked is begun anew.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs what `begin` makes `of` something. Where it ends by itself it has nothing more to do.
pub(super) fn keep<S, F, T>(
    runtime: &Handle,
    process: &Arc<Process>,
    name: &'static str,
    of: &Arc<S>,
    mut begin: F,
) where
    S: Send + Sync + 'static,
    F: FnMut(Arc<S>) -> T + Send + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let (process, of) = (process.clone(), of.clone());
    runtime.spawn(async move {
        while let Err(error) = tokio::spawn(begin(of.clone())).await {
            // Control ends.
            if error.is_cancelled() {
                return;
            }
            tell(&process, name, &error);
            tokio::time::sleep(PAUSE).await;
        }
    });
}

/// Logs and counts what a task, or a part of one, ended by.
pub(super) fn tell(process: &Process, name: &str, error: &JoinError) {
    if error.is_panic() {
        tracing::error!(task = name, %error, "a task of control panicked: a bug; it is begun anew");
        process.add(ProcessCounter::TaskPanics, 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_of_and_begun_anew() {
        let process = Arc::new(Process::default());
        let (lives, mut seen) = mpsc::channel(8);
        let mut life = 0;
        keep(&Handle::current(), &process, "test", &Arc::new(lives), move |lives| {
            life += 1;
            async move {
                lives.send(life).await.expect("the test looks");
                assert_ne!(life, 1, "the first one panics");
            }
        });
        assert_eq!(seen.recv().await, Some(1));
        assert_eq!(seen.recv().await, Some(2));
        assert_eq!(process.counter(ProcessCounter::TaskPanics), 1);
        // The second ended by itself, and none comes after it.
        assert_eq!(seen.recv().await, None);
    }
}
