//! Watches the table's file and asks for a reload when it has changed.
//!
//! By looking (device, inode, size, time of change), not by kernel events: that survives editors which write a new file
//! and rename it, links that are switched, bind mounts and network file systems. A file counts as changed once it looks
//! the same twice in a row, so that half of it is not taken for the whole.

use std::{path::Path, sync::Arc, time::Duration};

use super::{
    Router,
    tables::{Refusal, Stamp},
};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(500);

/// Never returns; ends with the runtime.
pub async fn watch(router: Arc<Router>) {
    let Some(path) = router.tables().file().map(Path::to_owned) else {
        return;
    };
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut last = router.tables().stamp();
    let mut missing = false;
    loop {
        period.tick().await;
        let Some(stamp) = Stamp::of(&path) else {
            if !missing {
                tracing::warn!(file = %path.display(), "the table's file is gone; the present table stays");
            }
            missing = true;
            continue;
        };
        missing = false;
        let settled = last == Some(stamp);
        last = Some(stamp);
        if settled && router.tables().stamp() != Some(stamp) {
            tracing::info!(file = %path.display(), "the table's file has changed");
            // What is wrong is logged and kept for the API; the file is read again when it changes again.
            if let Err(refusal @ Refusal::Superseded) = router.reload().await {
                tracing::info!("{refusal}");
            }
        }
    }
}
