//! A real DNS server for one test: dnsmasq (Debian's dnsmasq-base) with the records that the test gives it, authority for
//! `.test`, no upstream.

use std::{net::SocketAddr, process::Command, time::Duration};

use super::{Process, TempDir, process::wait_udp_free};

/// One that runs; gone when dropped.
pub struct Dns {
    process: Option<Process>,
    address: SocketAddr,
    dir: TempDir,
}

impl Dns {
    /// Starts it with these lines of dnsmasq.conf: `host-record=a.test,127.40.1.11`, `srv-host=…`. Records live one second.
    #[track_caller]
    pub fn start(address: &str, records: &str) -> Dns {
        let address = address.parse().expect("an address of the test's");
        let mut dns = Dns { process: None, address, dir: TempDir::new("dns") };
        dns.restart(records);
        dns
    }

    /// Kills it and starts it with other records.
    #[track_caller]
    pub fn restart(&mut self, records: &str) {
        self.kill();
        let (ip, port) = (self.address.ip(), self.address.port());
        let config = format!(
            "listen-address={ip}\nport={port}\nbind-interfaces\nno-resolv\nno-hosts\nlocal=/test/\nlocal-ttl=1\nneg-ttl=1\n\
             pid-file=\nuser=root\n{records}\n"
        );
        let config = self.dir.write("dnsmasq.conf", &config);
        let mut command = Command::new("/usr/sbin/dnsmasq");
        command.arg("--keep-in-foreground").arg("--log-facility=-").arg("-C").arg(config);
        let mut process = Process::start("dnsmasq", &mut command, &self.dir.path().join("dnsmasq.log"));
        process.wait_udp(self.address, Duration::from_secs(5));
        self.process = Some(process);
    }

    /// It answers no more.
    #[track_caller]
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal("KILL");
            drop(process);
            wait_udp_free(self.address);
        }
    }
}
