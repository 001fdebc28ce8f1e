//! Listeners that a table names, against those that there are: the one check that needs tidings.toml too.

use super::{
    super::{
        diagnostic::{Diagnostic, Severity},
        document::{quoted, suggestion},
        settings::{ListenSpec, Side},
    },
    BackendSpec, ListenerUser, TableSpec,
};

/// Faults of a table on a router with these listeners: names that are not there, and a pool's listener that cannot
/// reach its backends. Sorted by place.
pub fn check_listeners(spec: &TableSpec, listeners: &[ListenSpec]) -> Vec<Diagnostic> {
    let mut out = Vec::new();
    for used in &spec.listener_uses {
        let message = match listeners.iter().find(|listen| listen.name == used.listener) {
            None => {
                let near = suggestion(&used.listener, listeners.iter().map(|listen| listen.name.as_str()));
                Some(format!("unknown listener {}{near}", quoted(&used.listener)))
            }
            Some(listen) => match used.by {
                ListenerUser::Pool(pool) => unfit(spec, pool, listen),
                ListenerUser::Rule(_) => None,
            },
        };
        if let Some(message) = message {
            out.push(Diagnostic {
                severity: Severity::Error,
                file: spec.file.clone(),
                line: used.place.line,
                column: used.place.column,
                message,
                text: used.place.text.clone(),
            });
        }
    }
    out.sort_by_key(|fault| (fault.line, fault.column));
    out
}

/// Why requests to this pool cannot leave by this listener.
fn unfit(spec: &TableSpec, pool: usize, listen: &ListenSpec) -> Option<String> {
    let name = quoted(&listen.name);
    if listen.side == Side::Clients {
        return Some(format!(
            "listener {name} has side = \"clients\": nothing leaves by it toward a backend"
        ));
    }
    let backends = &spec.pools.get(pool)?.backends;
    if let Some(backend) = backends.iter().find(|backend| backend.transport != listen.transport) {
        let (of, at) = (backend.transport.label(), listen.transport.label());
        return Some(format!("listener {name} speaks {at}, backend {} {of}", quoted(&backend.name)));
    }
    // What a name resolves to is seen when it is resolved.
    let of_another_family = |backend: &&BackendSpec| {
        backend.addr.address().is_some_and(|addr| addr.is_ipv4() != listen.address.is_ipv4())
    };
    let other = backends.iter().find(of_another_family)?;
    Some(format!("listener {name} cannot reach backend {}: one is IPv4, the other IPv6", quoted(&other.name)))
}
