//! One core's decisions without sockets, for what is stepped by hand. Included by its path: it needs nothing else of the rig.

use std::{path::Path, sync::Arc};

use tidings::{
    config::{self, Settings},
    forward::{Core, Setup, Shared},
    live::{Dns, Now, Registry},
    route::{Context, Table, compile},
    stats::{CoreStats, SeriesRegistry},
    wire::token::Ring,
};

/// A core with these settings, its table, and the time at which both began.
pub fn core(settings: &str, table: &str) -> (Core, Table, Now) {
    let settings = Settings::parse("tidings.toml", settings, Path::new("/")).expect("valid settings");
    let (spec, _) = config::table::parse("table.toml", table).expect("a valid table");
    let now = Now { mono_ms: 1_000_000, unix_s: 1_800_000_000 };
    let context = Context {
        listeners: &settings.listen,
        strip: &settings.trust.strip,
        registry: &Registry::default(),
        dns: &Dns::default(),
        unix_s: now.unix_s,
        series: &SeriesRegistry::new(settings.limits.series),
        departed: Vec::new(),
        departed_most: 1000,
        source_for: &|_| None,
        previous: None,
    };
    let (rules, pools) = compile(&spec, &context).expect("it compiles");
    let setup = Arc::new(Setup::new(&settings, Ring::new(&[(1, [7; 16])]), 9, now));
    let core = Core::new(setup, Arc::new(Shared::new(&settings)), Arc::new(CoreStats::new()));
    (core, Table { rules, pools, version: 1 }, now)
}
