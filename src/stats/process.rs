//! What belongs to the process rather than to a core: the table, limits, state that cores share. Set by control, read by
//! a scrape.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use parking_lot::Mutex;

use super::numbers;

numbers! {
    /// Values that control sets.
    ProcessGauge {
        Flows => FLOWS;
        FlowsLimit => FLOWS_LIMIT;
        MovedFlows => MOVED_FLOWS;
        MovedFlowsLimit => MOVED_FLOWS_LIMIT;
        Users => CONNECTION_USERS;
        UsersLimit => CONNECTION_USERS_LIMIT;
        UsersEachLimit => CONNECTION_USERS_EACH_LIMIT;
        NewsLimit => NEWS_LIMIT;
        OwnRequests => OWN_REQUESTS;
        OwnRequestsLimit => OWN_REQUESTS_LIMIT;
        WebhookSpool => WEBHOOK_SPOOL;
        WebhookSpoolLimit => WEBHOOK_SPOOL_LIMIT;
        KeepaliveFlows => KEEPALIVE_FLOWS;
        KeepaliveRate => KEEPALIVE_RATE_LIMIT;
        UnreachableFlows => UNREACHABLE_FLOWS;
        UnreachableFlowsLimit => UNREACHABLE_FLOWS_LIMIT;
        Departed => DEPARTED;
        DepartedLimit => DEPARTED_LIMIT;
        DnsNames => DNS_NAMES;
        DnsUnresolved => DNS_UNRESOLVED;
        DnsAddressesLimit => DNS_ADDRESSES_LIMIT;
        AddressesRefusing => ADDRESSES_REFUSING;
        Calls => CALLS;
        CallsLimit => CALLS_LIMIT;
        ConnectionsLimit => CONNECTIONS_LIMIT;
        PerAddressLimit => CONNECTIONS_PER_ADDRESS_LIMIT;
        PerPrefixLimit => CONNECTIONS_PER_PREFIX_LIMIT;
        ConnectionKeepalivesLimit => CONNECTION_KEEPALIVES_LIMIT;
        AcceptsLimit => ACCEPTS_LIMIT;
        ConnectionSources => CONNECTION_SOURCES;
        ConnectionQueued => CONNECTION_QUEUED;
        OutputLimit => CONNECTION_OUTPUT_LIMIT;
        DeniedPrefixes => DENIED_PREFIXES;
        Bans => BANS;
        BansLimit => BANS_LIMIT;
        NewDialogsLimit => NEW_DIALOGS_LIMIT;
        MalformedLimit => MALFORMED_LIMIT;
        OpenFilesLimit => OPEN_FILES_LIMIT;
        HandshakesLimit => HANDSHAKES_LIMIT;
        CertificateExpiry => CERTIFICATE_EXPIRY;
        LimitMessage => LIMIT_MESSAGE;
        LimitHeaderLines => LIMIT_HEADER_LINES;
        LimitStartLine => LIMIT_START_LINE;
        SeriesLimit => SERIES_LIMIT;
        Series => SERIES;
        SeriesBeyond => SERIES_BEYOND;
        TableVersion => TABLE_VERSION;
        TableLoaded => TABLE_LOADED;
        TableRules => TABLE_RULES;
        TablePools => TABLE_POOLS;
        TableBackends => TABLE_BACKENDS;
        Workers => WORKERS;
        ProbesUnderWay => PROBES_UNDER_WAY;
        ProbesLimit => PROBES_LIMIT;
        AdminConnections => ADMIN_CONNECTIONS;
        AdminConnectionsLimit => ADMIN_CONNECTIONS_LIMIT;
        Ready => READY;
        StartTime => START_TIME;
    }
}

numbers! {
    /// Counts that control keeps.
    ProcessCounter {
        TableSwaps => TABLE_SWAPS;
        TableFailures => TABLE_FAILURES;
        /// Probes that were due while there was no room.
        ProbesDelayed => PROBES_DELAYED;
        OwnSuccess => OWN_REQUESTS_ENDED "success";
        OwnRefused => OWN_REQUESTS_ENDED "refused";
        OwnTimeout => OWN_REQUESTS_ENDED "timeout";
        OwnUndeliverable => OWN_REQUESTS_ENDED "undeliverable";
        /// There was no room for it.
        OwnFull => OWN_REQUESTS_ENDED "full";
        FlowEventsTold => FLOW_EVENTS "told";
        /// The user was back in time.
        FlowEventsReturned => FLOW_EVENTS "returned";
        FlowLinesSuppressed => FLOW_EVENTS_SUPPRESSED;
        WebhookDelivered => WEBHOOKS "delivered";
        /// The receiver will not have this one.
        WebhookRefused => WEBHOOKS "refused";
        WebhookFailed => WEBHOOKS "failed";
        WebhookDropped => WEBHOOK_DROPPED;
        NotifySuccess => FLOW_NOTIFIES "success";
        NotifyFailed => FLOW_NOTIFIES "failed";
        /// There was no room for it to wait its turn.
        NotifyFull => FLOW_NOTIFIES "full";
        DeregisterSuccess => DEREGISTRATIONS "success";
        DeregisterFailed => DEREGISTRATIONS "failed";
        DeregisterFull => DEREGISTRATIONS "full";
        /// The user was back before its turn came.
        DeregisterReturned => DEREGISTRATIONS "returned";
        KeepaliveCrlf => KEEPALIVES "crlf";
        KeepaliveOptions => KEEPALIVES "options";
        KeepalivesLate => KEEPALIVES_LATE;
        KeepaliveDead => KEEPALIVE_DEAD;
        DepartedDropped => DEPARTED_DROPPED;
        BansMalformed => BANS_BEGUN "malformed";
        BansExcess => BANS_BEGUN "excess";
        BansOperator => BANS_BEGUN "operator";
        BansLifted => BANS_LIFTED;
        BansLeftOut => BANS_LEFT_OUT;
        BanMirrorFailures => BAN_MIRROR_FAILURES;
        DnsAnswered => DNS_LOOKUPS "answered";
        /// No such name, or no record of use.
        DnsNothing => DNS_LOOKUPS "nothing";
        /// No answer, or none that is one.
        DnsFailed => DNS_LOOKUPS "failed";
        /// Addresses, but none that may be a backend's.
        DnsRefused => DNS_LOOKUPS "refused";
        CertificatesLoaded => CERTIFICATE_LOADS "loaded";
        CertificatesRefused => CERTIFICATE_LOADS "refused";
        DnsChanges => DNS_CHANGES;
        DnsDropped => DNS_ADDRESSES_DROPPED;
        TaskPanics => TASK_PANICS;
        AdminRefused => ADMIN_CONNECTIONS_REFUSED;
    }
}

/// The process's numbers.
pub struct Process {
    gauges: [AtomicU64; ProcessGauge::ALL.len()],
    counters: [AtomicU64; ProcessCounter::ALL.len()],
    table_source: Mutex<Arc<str>>,
    named: Mutex<Vec<NamedBackend>>,
}

impl Default for Process {
    fn default() -> Process {
        Process {
            gauges: std::array::from_fn(|_| AtomicU64::new(0)),
            counters: std::array::from_fn(|_| AtomicU64::new(0)),
            table_source: Mutex::default(),
            named: Mutex::default(),
        }
    }
}

/// A backend whose URI names a host.
#[derive(Clone, Debug)]
pub struct NamedBackend {
    pub backend: Arc<str>,
    pub addresses: u64,
    /// Seconds since the last good answer; `None` where there was none yet.
    pub age_s: Option<u64>,
}

impl Process {
    pub fn set(&self, gauge: ProcessGauge, value: u64) {
        self.gauges[gauge as usize].store(value, Relaxed);
    }

    /// One more of what is there.
    pub fn enter(&self, gauge: ProcessGauge) {
        self.gauges[gauge as usize].fetch_add(1, Relaxed);
    }

    /// One less; of those that entered.
    pub fn leave(&self, gauge: ProcessGauge) {
        self.gauges[gauge as usize].fetch_sub(1, Relaxed);
    }

    pub fn add(&self, counter: ProcessCounter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Relaxed);
    }

    /// Where the table came from: a file, the API, the embedded default.
    pub fn set_table_source(&self, source: &str) {
        *self.table_source.lock() = Arc::from(source);
    }

    /// What the names of backends stand at; each backend once.
    pub fn set_named(&self, named: Vec<NamedBackend>) {
        *self.named.lock() = named;
    }

    pub fn named(&self) -> Vec<NamedBackend> {
        self.named.lock().clone()
    }

    pub fn gauge(&self, gauge: ProcessGauge) -> u64 {
        self.gauges[gauge as usize].load(Relaxed)
    }

    pub fn counter(&self, counter: ProcessCounter) -> u64 {
        self.counters[counter as usize].load(Relaxed)
    }

    pub fn table_source(&self) -> Arc<str> {
        self.table_source.lock().clone()
    }
}
