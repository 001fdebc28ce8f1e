//! Drives the real binary: starting, the ways in which a start fails, reloading, the API, stopping.
//!
//! Each test has its own 127.60.N.0/24 and its own directory; every wait is bounded and says what it waited for.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A table of one rule that answers everything with one code, so that an answer tells which table is in force.
fn replies(code: u16) -> String {
    format!(
        "[[rule]]\nname = \"all\"\nmatch = {{}}\nreply = {{ code = {code}, reason = \"Table {code}\" }}\n"
    )
}

/// Two faults, in lines 3 and 8.
const BAD_TABLE: &str = "\
[[rule]]
name = \"one\"
match = { method = 5 }
reply = { code = 486, reason = \"Busy Here\" }

[[rule]]
name = \"two\"
route = \"nobody\"
";

/// One test's directory, with its configuration and table, and its address.
struct House {
    dir: PathBuf,
    ip: String,
}

impl House {
    fn new(n: u8) -> House {
        let dir = std::env::temp_dir().join(format!("tidings-cli-{n}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory in /tmp");
        let house = House { dir, ip: format!("127.60.{n}.1") };
        house.write("table.toml", &replies(480));
        house.configure("");
        house
    }

    /// Writes the configuration; `more` is what stands behind its usual sections.
    fn configure(&self, more: &str) {
        let ip = &self.ip;
        let text = format!(
            "table = \"table.toml\"\nstate_dir = \"state\"\n\n[workers]\ncount = 2\n\n[[listen]]\nname = \"phones\"\n\
             address = \"{ip}:5070\"\n\n[admin]\naddress = \"{ip}:9060\"\n{more}"
        );
        self.write("tidings.toml", &text);
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("write a file of the test");
    }

    /// As an editor saves: a new file, renamed over the old.
    fn save(&self, name: &str, text: &str) {
        self.write("draft", text);
        fs::rename(self.path("draft"), self.path(name)).expect("rename");
    }

    fn admin(&self) -> String {
        format!("{}:9060", self.ip)
    }

    fn run(&self) -> Router {
        self.run_with(&[])
    }

    fn run_with(&self, more: &[&str]) -> Router {
        let config = self.path("tidings.toml");
        let mut command = tidings(&["run", "--config", config.to_str().expect("a path of text")]);
        Router::start(command.args(more), &self.ip)
    }

    /// Runs to its end, which must come by itself.
    fn fail(&self) -> Output {
        let config = self.path("tidings.toml");
        finish(&mut tidings(&["run", "--config", config.to_str().expect("a path of text")]))
    }

    /// `tidings reload` with this house's configuration.
    fn reload(&self) -> Output {
        let config = self.path("tidings.toml");
        finish(&mut tidings(&["reload", "--config", config.to_str().expect("a path of text")]))
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn tidings(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.args(args).env_remove("RUST_LOG").env_remove("TIDINGS_LOG").env_remove("STATE_DIRECTORY");
    command
}

/// Waits for a command that must end by itself.
fn finish(command: &mut Command) -> Output {
    fn read_all(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
        thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).expect("read what it prints");
            bytes
        })
    }
    let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("tidings");
    let stdout = read_all(child.stdout.take().expect("piped"));
    let stderr = read_all(child.stderr.take().expect("piped"));
    let status = wait(&mut child);
    Output { status, stdout: stdout.join().expect("no panic"), stderr: stderr.join().expect("no panic") }
}

fn wait(child: &mut Child) -> ExitStatus {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("wait") {
            return status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            panic!("tidings did not end within {PATIENCE:?}");
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// A router that runs; killed at the end of the test if it still does.
struct Router {
    child: Child,
    log: Arc<Mutex<String>>,
    ip: String,
}

impl Router {
    fn start(command: &mut Command, ip: &str) -> Router {
        let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("tidings");
        let stderr = child.stderr.take().expect("piped");
        let log = Arc::new(Mutex::new(String::new()));
        let theirs = log.clone();
        thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                let mut log = theirs.lock().expect("no panic");
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut router = Router { child, log, ip: ip.to_owned() };
        let end = Instant::now() + PATIENCE;
        while !router.log().contains("ready") {
            let status = router.child.try_wait().expect("wait");
            assert!(status.is_none() && Instant::now() < end, "not ready ({status:?}):\n{}", router.log());
            thread::sleep(Duration::from_millis(10));
        }
        router
    }

    fn log(&self) -> String {
        self.log.lock().expect("no panic").clone()
    }

    fn wait_log(&self, what: &str) {
        self.until(&format!("{what:?} in the log"), || self.log().contains(what));
    }

    fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds() {
            assert!(Instant::now() < end, "waited in vain for {what}; log:\n{}", self.log());
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &pid]).status().expect("kill");
        assert!(sent.success());
    }

    fn http(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        http(&format!("{}:9060", self.ip), method, path, headers, body)
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.http("GET", path, "", "")
    }

    fn table(&self) -> serde_json::Value {
        let (status, body) = self.get("/api/v1/table");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    fn version(&self) -> u64 {
        self.table()["version"].as_u64().expect("a number")
    }

    fn wait_version(&self, version: u64) {
        self.until(&format!("version {version}"), || self.version() == version);
    }

    /// The value of a series without labels.
    fn metric(&self, series: &str) -> f64 {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200);
        let value = body.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
        value.unwrap_or_else(|| panic!("no {series} in\n{body}"))
    }

    /// What the table in force answers to a request: asked until an answer comes, as over UDP.
    fn decides(&self) -> u16 {
        let socket = UdpSocket::bind((self.ip.as_str(), 0)).expect("a socket");
        socket.set_read_timeout(Some(Duration::from_millis(500))).expect("timeout");
        let local = socket.local_addr().expect("address");
        for attempt in 0..40 {
            let request = format!(
                "MESSAGE sip:1000@{ip} SIP/2.0\r\nVia: SIP/2.0/UDP {local};branch=z9hG4bK-{port}-{attempt};rport\r\n\
                 Max-Forwards: 70\r\nFrom: <sip:a@{ip}>;tag=1\r\nTo: <sip:1000@{ip}>\r\n\
                 Call-ID: {port}-{attempt}\r\nCSeq: 1 MESSAGE\r\nContent-Length: 0\r\n\r\n",
                ip = self.ip,
                port = local.port(),
            );
            socket.send_to(request.as_bytes(), (self.ip.as_str(), 5070)).expect("send");
            let mut buffer = [0; 2048];
            if let Ok(len) = socket.recv(&mut buffer) {
                let answer = String::from_utf8_lossy(&buffer[..len]);
                let code = answer.strip_prefix("SIP/2.0 ").and_then(|rest| rest.get(..3)?.parse().ok());
                return code.unwrap_or_else(|| panic!("no response: {answer}"));
            }
        }
        panic!("no answer from the router; log:\n{}", self.log());
    }

    /// Ends by SIGTERM, with exit code 0.
    fn stop(mut self) -> String {
        self.signal("TERM");
        let status = wait(&mut self.child);
        assert_eq!(status.code(), Some(0), "log:\n{}", self.log());
        self.log()
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn http(address: &str, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{address}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
    let request = format!(
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).expect("write");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("read");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a header");
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Exactly one line, of ours, that says all of this.
fn assert_one_line(output: &Output, says: &[&str]) {
    let stderr = text(&output.stderr);
    assert!(!output.status.success(), "{stderr}");
    let ours: Vec<&str> = stderr.lines().filter(|line| line.starts_with("tidings: ")).collect();
    assert_eq!(ours.len(), 1, "one line of ours in\n{stderr}");
    for what in says {
        assert!(ours[0].contains(what), "{what:?} in {}", ours[0]);
    }
}

// --- what is wrong is told in one line, with an exit code that is not 0 ---

#[test]
fn wrong_flags_are_one_line() {
    for (args, says) in [
        (&["run", "--frob"][..], "--frob"),
        (&["frobnicate"][..], "frobnicate"),
        (&["run", "--config"][..], "--config"),
        (&["explain"][..], "MESSAGE.sip"),
        (&["explain", "m.sip", "--source", "nowhere"][..], "nowhere"),
        (&["demo", "--seconds", "many"][..], "many"),
    ] {
        let output = finish(&mut tidings(args));
        assert_one_line(&output, &[says]);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{args:?}: {}", text(&output.stderr));
    }
}

#[test]
fn help_and_version_go_to_stdout_with_exit_code_0() {
    let help = finish(&mut tidings(&["--help"]));
    assert!(help.status.success());
    for command in ["run", "check", "explain", "reload", "demo"] {
        assert!(text(&help.stdout).contains(command), "{}", text(&help.stdout));
        let its = finish(&mut tidings(&[command, "--help"]));
        assert!(its.status.success() && text(&its.stdout).contains("Usage"), "{command}");
    }
    let version = finish(&mut tidings(&["--version"]));
    assert_eq!(text(&version.stdout), format!("tidings {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_missing_configuration_or_table_is_named() {
    let house = House::new(1);
    let gone = house.path("gone.toml");
    let output = finish(&mut tidings(&["run", "--config", gone.to_str().expect("text")]));
    assert_one_line(&output, &["gone.toml", "No such file"]);
    fs::remove_file(house.path("table.toml")).expect("remove");
    assert_one_line(&house.fail(), &["cannot read the table", "table.toml", "No such file"]);
}

#[test]
fn a_wrong_configuration_is_told_with_all_its_faults() {
    let house = House::new(2);
    house.configure("\n[limits]\npins = \"many\"\n\n[workers2]\ncount = 1\n");
    let output = house.fail();
    assert_one_line(&output, &["tidings.toml", "2 errors"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("tidings.toml:15:8: error: "), "{stderr}");
    assert!(stderr.contains("tidings.toml:17:2: error: "), "{stderr}");
}

#[test]
fn a_wrong_table_is_told_with_all_its_faults() {
    let house = House::new(3);
    house.write("table.toml", BAD_TABLE);
    let output = house.fail();
    assert_one_line(&output, &["table.toml", "2 errors"]);
    let stderr = text(&output.stderr);
    assert!(stderr.contains("table.toml:3:"), "{stderr}");
    assert!(stderr.contains("table.toml:8:"), "{stderr}");
}

#[test]
fn a_port_in_use_is_named() {
    let house = House::new(4);
    let sip = UdpSocket::bind((house.ip.as_str(), 5070)).expect("the test's port");
    assert_one_line(&house.fail(), &["phones", "127.60.4.1:5070", "in use"]);
    drop(sip);
    let _admin = TcpListener::bind(house.admin()).expect("the test's port");
    assert_one_line(&house.fail(), &["admin", "127.60.4.1:9060", "in use"]);
}

#[test]
fn a_second_router_on_the_same_port_is_refused() {
    let house = House::new(5);
    let first = house.run();
    assert_one_line(&house.fail(), &["127.60.5.1:5070", "in use"]);
    assert_eq!(first.decides(), 480, "the first goes on");
    first.stop();
}

#[test]
fn a_state_directory_that_cannot_be_written_is_a_clear_error() {
    let house = House::new(6);
    house.write("state", "a file in its way");
    assert_one_line(&house.fail(), &["state directory", "state"]);
}

#[test]
fn a_key_file_must_be_private_and_hold_keys() {
    let house = House::new(7);
    house.configure("\n[tokens]\nkey_file = \"ring\"\n");
    assert_one_line(&house.fail(), &["key file", "ring", "No such file"]);
    let checked = finish(tidings(&["check"]).arg(house.path("tidings.toml")));
    assert_eq!(checked.status.code(), Some(1), "{}", text(&checked.stdout));
    assert!(text(&checked.stderr).contains("No such file"), "{}", text(&checked.stderr));
    house.write("ring", "3 00112233445566778899aabbccddeeff\n");
    fs::set_permissions(house.path("ring"), fs::Permissions::from_mode(0o644)).expect("chmod");
    assert_one_line(&house.fail(), &["ring", "0644", "chmod 600"]);
    fs::set_permissions(house.path("ring"), fs::Permissions::from_mode(0o600)).expect("chmod");
    let router = house.run();
    house.write("ring", "4 00112233445566778899aabbccddee00\n");
    router.signal("HUP");
    router.wait_log("the key file has changed too: a restart applies it");
    assert!(!router.log().contains("the configuration has changed"), "{}", router.log());
    router.stop();
    house.write("ring", "3 0011\n");
    let output = house.fail();
    assert!(!output.status.success());
    assert!(text(&output.stderr).contains("32 hexadecimal digits"), "{}", text(&output.stderr));
}

#[test]
fn a_wrong_log_level_is_one_line() {
    let house = House::new(8);
    let config = house.path("tidings.toml");
    let mut command = tidings(&["run", "--config", config.to_str().expect("text")]);
    assert_one_line(&finish(command.env("TIDINGS_LOG", "tidings=loud")), &["TIDINGS_LOG", "loud"]);
}

// --- a router that runs ---

#[test]
fn it_says_ready_serves_health_and_ends_by_sigterm() {
    let house = House::new(10);
    let router = house.run();
    let log = router.log();
    let ready = log.lines().find(|line| line.contains("ready")).expect("a line");
    for what in ["phones 127.60.10.1:5070/udp", "workers=2", "table.toml", "admin=127.60.10.1:9060"] {
        assert!(ready.contains(what), "{what} in {ready}");
    }
    assert_eq!(router.get("/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(router.get("/readyz"), (200, "ready\n".to_owned()));
    let (status, index) = router.get("/");
    assert!(status == 200 && index.contains("/metrics"), "{index}");
    assert_eq!(router.get("/nothing").0, 404);
    assert_eq!(router.metric("tidings_ready"), 1.0);
    assert_eq!(router.metric("tidings_workers"), 2.0);
    assert_eq!(router.metric("tidings_table_version"), 1.0);
    assert_eq!(router.decides(), 480);
    assert_eq!(router.metric("tidings_answers_total{code=\"480\"}"), 1.0);
    let log = router.stop();
    assert!(log.contains("SIGTERM"), "{log}");
}

#[test]
fn it_ends_by_sigint_too() {
    let house = House::new(11);
    let mut router = house.run();
    router.signal("INT");
    assert_eq!(wait(&mut router.child).code(), Some(0));
}

#[test]
fn the_line_is_there_at_any_level_and_as_json() {
    let house = House::new(12);
    house.configure("\n[log]\nformat = \"json\"\nlevel = \"error\"\n");
    let router = house.run();
    let log = router.log();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().expect("a line")).expect("JSON");
    assert_eq!(line["fields"]["message"], "ready", "{log}");
    router.stop();
}

#[test]
fn the_table_of_the_command_line_goes_before_the_configuration() {
    let house = House::new(13);
    house.write("other.toml", &replies(486));
    let router = house.run_with(&["--table", house.path("other.toml").to_str().expect("text")]);
    assert_eq!(router.decides(), 486);
    router.stop();
}

#[test]
fn the_state_directory_counts_boots_and_keeps_the_key() {
    let house = House::new(14);
    house.run().stop();
    let read = |name: &str| fs::read_to_string(house.path("state").join(name)).expect("a state file");
    let (boot, key) = (read("boot"), read("token.key"));
    house.run().stop();
    let next = boot.trim().parse::<u16>().expect("a number").wrapping_add(1);
    assert_eq!(read("boot").trim(), next.to_string());
    assert_eq!(read("token.key"), key);
    let mode = fs::metadata(house.path("state/token.key")).expect("token.key").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
}

// --- reloading ---

#[test]
fn sighup_reads_the_table_again() {
    let house = House::new(20);
    let router = house.run();
    // Nothing has changed: it is the signal that reloads.
    router.signal("HUP");
    router.wait_version(2);
    house.write("table.toml", &replies(486));
    router.signal("HUP");
    router.until("the new table", || router.decides() == 486);
    house.configure("\n[timers]\ngrace = \"10s\"\n");
    router.signal("HUP");
    router.wait_log("a restart applies it");
    router.stop();
}

#[test]
fn a_changed_file_is_noticed_however_it_was_saved() {
    let house = House::new(21);
    house.write("first.toml", &replies(481));
    house.write("second.toml", &replies(482));
    fs::remove_file(house.path("table.toml")).expect("remove");
    symlink("first.toml", house.path("table.toml")).expect("link");
    let router = house.run();
    assert_eq!(router.decides(), 481);
    house.write("first.toml", &replies(483));
    router.until("a file written in place", || router.decides() == 483);
    symlink("second.toml", house.path("draft")).expect("link");
    fs::rename(house.path("draft"), house.path("table.toml")).expect("rename");
    router.until("a link that was switched", || router.decides() == 482);
    house.save("table.toml", &replies(486));
    router.until("a file renamed over it", || router.decides() == 486);
    fs::remove_file(house.path("table.toml")).expect("remove");
    router.wait_log("file is gone");
    assert_eq!(router.decides(), 486);
    house.write("table.toml", &replies(487));
    router.until("a file that came back", || router.decides() == 487);
    assert_eq!(router.version(), 5, "each change was one table");
    router.stop();
}

#[test]
fn a_bad_table_changes_nothing_and_says_why() {
    let house = House::new(22);
    let router = house.run();
    house.save("table.toml", BAD_TABLE);
    router.until("the failure", || router.metric("tidings_table_failures_total") == 1.0);
    let status = router.table();
    assert_eq!(status["version"], 1);
    let places: Vec<_> =
        status["last_error"]["diagnostics"].as_array().expect("a list").iter().map(|d| &d["line"]).collect();
    assert_eq!(places, [3, 8], "{status}");
    // The line comes behind the metric.
    router.wait_log("table.toml:3:");
    router.wait_log("table.toml:8:");
    assert_eq!(router.decides(), 480);
    house.save("table.toml", &replies(486));
    router.until("the mended table", || router.decides() == 486);
    assert_eq!(router.table()["last_error"], serde_json::Value::Null);
    assert_eq!(
        (router.metric("tidings_table_version"), router.metric("tidings_table_swaps_total")),
        (2.0, 2.0)
    );
    assert_eq!(
        router.metric("tidings_table_failures_total"),
        1.0,
        "a bad file is read once, not each second"
    );
    router.stop();
}

#[test]
fn put_takes_a_table_or_refuses_it_whole() {
    let house = House::new(23);
    let router = house.run();
    let (status, body) = router.http("PUT", "/api/v1/table", "", &replies(486));
    assert_eq!(status, 200, "{body}");
    assert_eq!(serde_json::from_str::<serde_json::Value>(&body).expect("JSON")["version"], 2);
    router.until("the new table", || router.decides() == 486);

    let (status, body) = router.http("PUT", "/api/v1/table", "", BAD_TABLE);
    assert_eq!(status, 422);
    let answer: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(answer["diagnostics"].as_array().map(Vec::len), Some(2), "{body}");
    assert!(
        answer["text"].as_str().is_some_and(|text| text.contains(":3:") && text.contains(":8:")),
        "{body}"
    );
    assert_eq!((router.version(), router.decides()), (2, 486));

    let (status, _) = router.http("PUT", "/api/v1/table", "Origin: http://example.com\r\n", &replies(487));
    assert_eq!(status, 403, "no page of another origin");
    assert_eq!(router.version(), 2);
    router.stop();
}

#[test]
fn rollback_leads_back_and_forth() {
    let house = House::new(24);
    let router = house.run();
    assert_eq!(router.http("POST", "/api/v1/rollback", "", "").0, 409);
    assert_eq!(router.http("PUT", "/api/v1/table", "", &replies(486)).0, 200);
    assert_eq!(router.http("POST", "/api/v1/rollback", "", "").0, 200);
    router.until("the former table", || router.decides() == 480);
    assert_eq!(router.http("POST", "/api/v1/rollback", "", "").0, 200);
    router.until("the later table", || router.decides() == 486);
    assert_eq!(router.version(), 4, "versions only grow");
    router.stop();
}

#[test]
fn the_reload_command_tells_by_its_exit_code() {
    let house = House::new(25);
    let nobody = house.reload();
    assert_one_line(&nobody, &["cannot reach", "127.60.25.1:9060"]);
    assert_eq!(nobody.status.code(), Some(2));

    let router = house.run();
    let done = house.reload();
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    assert!(text(&done.stdout).contains("version 2"), "{}", text(&done.stdout));

    // Its warnings are told by whoever asked.
    house.save("table.toml", &format!("[[pool]]\nname = \"unused\"\n{}", replies(480)));
    let done = house.reload();
    assert_eq!(done.status.code(), Some(0), "{}", text(&done.stderr));
    let stderr = text(&done.stderr);
    assert!(stderr.contains("table.toml:1:1: warning: ") && stderr.contains("unused"), "{stderr}");

    // A file that was cut off is no table, if it is a valid one.
    house.save("table.toml", "");
    let refused = house.reload();
    assert_one_line(&refused, &["table.toml", "has no rule", "has 1"]);
    assert_eq!((refused.status.code(), router.decides()), (Some(1), 480));
    let (status, why) = router.http("PUT", "/api/v1/table", "", "");
    assert!(status == 422 && why.contains("has no rule"), "{status} {why}");

    house.save("table.toml", BAD_TABLE);
    let refused = house.reload();
    assert_one_line(&refused, &["2 errors"]);
    assert_eq!(refused.status.code(), Some(1));
    let stderr = text(&refused.stderr);
    assert!(stderr.contains("table.toml:3:") && stderr.contains("table.toml:8:"), "{stderr}");
    assert_eq!(router.decides(), 480);
    router.stop();
}

#[test]
fn a_token_is_asked_for_where_one_is_set() {
    let house = House::new(26);
    house.configure("token = \"open-sesame-please\"\n");
    let router = house.run();
    assert_eq!(router.get("/readyz").0, 200, "probes need none");
    for path in ["/", "/metrics", "/api/v1/table"] {
        assert_eq!(router.get(path).0, 401, "{path}");
        assert_eq!(
            router.http("GET", path, "Authorization: Bearer open-sesame-pleas\r\n", "").0,
            401,
            "{path}"
        );
        assert_eq!(
            router.http("GET", path, "Authorization: Bearer open-sesame-please\r\n", "").0,
            200,
            "{path}"
        );
    }
    assert_eq!(router.http("POST", "/api/v1/reload", "", "").0, 401);
    let stranger = finish(&mut tidings(&["reload", "--admin", &house.admin()]));
    assert_eq!(stranger.status.code(), Some(2), "{}", text(&stranger.stderr));
    assert_eq!(house.reload().status.code(), Some(0), "its configuration holds the token");
    router.stop();
}

// --- explain ---

const MESSAGE: &str = "\
SUBSCRIBE sip:1000@127.0.0.1 SIP/2.0\r\n\
Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1\r\n\
Max-Forwards: 70\r\n\
From: <sip:2000@example.com>;tag=1\r\n\
To: <sip:1000@example.com>\r\n\
Call-ID: explained\r\n\
CSeq: 1 SUBSCRIBE\r\n\
Event: dialog\r\n\
Contact: <sip:2000@192.0.2.1>\r\n\
Content-Length: 0\r\n\r\n";

const POOLED: &str = "\
[[pool]]
name = \"lamps\"

[[pool.backend]]
name = \"pbx1\"
uri = \"sip:127.60.30.11:5060\"

[[rule]]
name = \"only presence\"
match = { event = [\"presence\"] }
reply = { code = 489, reason = \"Bad Event\" }

[[rule]]
name = \"all lamps\"
match = { method = [\"SUBSCRIBE\"] }
route = \"lamps\"
";

#[test]
fn explain_tells_rules_backend_and_message_and_is_the_same_twice() {
    let house = House::new(30);
    house.write("message.sip", MESSAGE);
    house.write("saved-by-an-editor.sip", &MESSAGE.replace("\r\n", "\n"));
    house.write("table.toml", POOLED);
    let explain = |message: &str, more: &[&str]| {
        let (table, message) = (house.path("table.toml"), house.path(message));
        let mut command = tidings(&["explain", "--table"]);
        command.arg(table).arg(message).args(more);
        finish(&mut command)
    };
    let told = explain("message.sip", &[]);
    let words = text(&told.stdout);
    assert!(told.status.success(), "{}", text(&told.stderr));
    for what in
        ["only presence", "event", "all lamps", "pbx1", "127.60.30.11:5060", "SUBSCRIBE sip:1000@127.0.0.1"]
    {
        assert!(words.contains(what), "{what} in\n{words}");
    }
    assert_eq!(text(&explain("message.sip", &[]).stdout), words);
    assert_eq!(text(&explain("saved-by-an-editor.sip", &[]).stdout), words);
    let json: serde_json::Value =
        serde_json::from_str(&text(&explain("message.sip", &["--json"]).stdout)).expect("JSON");
    assert_eq!(json["rules"][1]["rule"], "all lamps", "{json}");

    assert_one_line(&explain("message.sip", &["--listener", "nobody"]), &["nobody", "udp-5060"]);
    assert_one_line(&explain("gone.sip", &[]), &["gone.sip"]);
    house.write("table.toml", BAD_TABLE);
    let refused = explain("message.sip", &[]);
    assert_one_line(&refused, &["2 errors"]);
    assert!(text(&refused.stderr).contains("table.toml:8:"));
}

/// With a configuration tokens are read under the router's own keys.
#[test]
fn explain_reads_the_tokens_of_its_configuration() {
    let house = House::new(35);
    house.write("table.toml", &POOLED.replace("127.60.30.11", "127.60.35.11"));
    house.write("message.sip", MESSAGE);
    let explain = |message: &str| {
        let mut command = tidings(&["explain", "--config"]);
        finish(command.arg(house.path("tidings.toml")).arg(house.path(message)))
    };
    // A router that has not run yet has no keys.
    let told = explain("message.sip");
    assert!(text(&told.stderr).contains("no token keys"), "{}", text(&told.stderr));
    assert!(told.status.success());

    let ring = |id: u8| {
        format!("\n[tokens]\nkeys = [{{ id = {id}, key = \"00112233445566778899aabbccddeeff\" }}]\n")
    };
    house.configure(&ring(3));
    let told = text(&explain("message.sip").stdout);
    let route =
        told.lines().find_map(|line| line.trim().strip_prefix("Record-Route: ")).expect("our Record-Route");
    let refresh = MESSAGE
        .replace("To: <sip:1000@example.com>", &format!("To: <sip:1000@example.com>;tag=2\r\nRoute: {route}"))
        .replace("1 SUBSCRIBE", "2 SUBSCRIBE");
    house.write("refresh.sip", &refresh);
    let told = text(&explain("refresh.sip").stdout);
    assert!(told.contains("token") && told.contains("127.60.35.11:5060"), "{told}");
    house.configure(&ring(4));
    let told = text(&explain("refresh.sip").stdout);
    assert!(told.contains("481"), "an unknown key is a dead route:\n{told}");
}

#[test]
fn the_running_router_explains_by_its_own_table() {
    let house = House::new(31);
    house.write("table.toml", &POOLED.replace("127.60.30.11", "127.60.31.11"));
    let router = house.run();
    let (status, told) =
        router.http("POST", "/api/v1/explain?source=192.0.2.1:5060&listener=phones", "", MESSAGE);
    assert!(
        status == 200 && told.contains("all lamps") && told.contains("127.60.31.11:5060"),
        "{status} {told}"
    );
    let accept = "Accept: application/json\r\n";
    let (_, json) = router.http("POST", "/api/v1/explain?source=192.0.2.1:5060", accept, MESSAGE);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["rules"][0]["matched"], false);
    assert_eq!(router.http("POST", "/api/v1/explain?source=192.0.2.1:1&listener=x", "", MESSAGE).0, 404);
    assert_eq!(router.http("POST", "/api/v1/explain", "", MESSAGE).0, 400);
    router.stop();
}
