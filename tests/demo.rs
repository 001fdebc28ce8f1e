//! `tidings demo` as a user runs it: everything happens, the summary says so, the exit code is 0.

mod rig;

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::Duration,
};

use rig::{Process, TempDir};

fn demo(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidings"));
    command.arg("demo").args(arguments);
    command
}

/// The number before the last of these words: those of the summary.
fn number(output: &str, words: &str) -> u64 {
    let at = output.rfind(words).unwrap_or_else(|| panic!("no {words:?} in\n{output}"));
    let number = output[..at].trim_end().rsplit([' ', '\n']).next().unwrap_or_default();
    number.parse().unwrap_or_else(|_| panic!("no number before {words:?} in\n{output}"))
}

#[test]
fn ten_seconds_show_everything() {
    let dir = TempDir::new("demo");
    let mut demo = Process::start("demo", &mut demo(&["--seconds", "10"]), &dir.path().join("demo.log"));
    let status = demo.wait_end(Duration::from_secs(40));
    let output = demo.output();
    assert!(status.success(), "{status}\n{output}");
    for shown in [
        "    [[pool]]",
        "  metrics  http://127.0.0.1:",
        "<- NOTIFY presence of 1001: open (via pbx",
        "<- NOTIFY dialog of 1001: confirmed (via pbx",
        "<- NOTIFY message-summary of 2003: yes (via pbx",
        "-> refreshed presence of 1001 for 10 s",
        "subscription over: timeout (via pbx",
        "<- 489 from pbx",
        "<- 489 from the router, Allow-Events: presence, dialog, message-summary",
        "<- 423 1 s is too brief",
        "412, publishes afresh",
        " messages in, ",
    ] {
        assert!(output.contains(shown), "no {shown:?} in\n{output}");
    }
    for words in
        [" made,", " refreshed,", " ended,", " timed out", " changes,", " refreshes,", " stale", " timed:"]
    {
        assert!(number(&output, words) > 0, "no{words} in\n{output}");
    }
    assert!(number(&output, " out\n") > 100, "the router's own count in\n{output}");
    assert!(output.contains("\n  failures       0\n"), "{output}");
}

#[test]
fn ctrl_c_ends_it_with_a_summary_and_two_can_run_at_once() {
    let dir = TempDir::new("demo-ctrl-c");
    let start = |name: &str| Process::start(name, &mut demo(&[]), &dir.path().join(name));
    let mut demos = [start("one"), start("two")];
    for demo in &mut demos {
        demo.wait_line("<- NOTIFY presence of 1001: open", Duration::from_secs(20));
        demo.signal("INT");
        let status = demo.wait_end(Duration::from_secs(20));
        assert!(status.success(), "{status}\n{}", demo.output());
        assert!(demo.output().contains("Summary of "), "{}", demo.output());
    }
}

#[test]
fn it_ends_when_nobody_reads_any_more() {
    let mut child = demo(&[]).stdout(Stdio::piped()).spawn().expect("the program");
    let stdout = child.stdout.take().expect("piped");
    let first = BufReader::new(stdout).lines().next();
    assert!(first.is_some_and(|line| line.is_ok_and(|line| line.starts_with("Tidings demo"))));
    let began = std::time::Instant::now();
    let status = loop {
        match child.try_wait().expect("our child") {
            Some(status) => break status,
            None if began.elapsed() > Duration::from_secs(20) => {
                child.kill().expect("our child");
                panic!("it goes on");
            }
            None => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    assert!(status.success(), "{status}");
}
