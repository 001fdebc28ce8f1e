//! The torture messages of RFC 4475 and RFC 5118 against the real binary over UDP.
//!
//! The project's own messages are in `tests/torture/`, one for each test of the RFCs, each with what must become of it in
//! `expect.tsv`. Each is sent by a phone to a router whose table sends all that comes from clients to one PBX. What is
//! forwarded must be byte-identical but for the edits of SPEC 4.1. A last message that is sound tells, without waiting,
//! that all before it have been dealt with.
//!
//! Where the environment variable `TIDINGS_CORPORA` names a folder with the archive's bytes (`rfc4475/`, `rfc5118/`, each
//! with an EXPECT.tsv), these are run too; it is for whoever has them, and nothing is claimed for them without it.

mod rig;

use std::{collections::BTreeMap, fs, net::SocketAddr, path::Path};

use rig::{
    Party,
    message::{Passage, Request, beyond_edits},
    scene::{Layout, Scene, one_pbx},
    text,
};

/// Ports that the messages' Vias lead back to: an answer goes to the sent-by port where there is no rport (RFC 3581 4).
const PORTS: [u16; 8] = [5060, 5061, 5050, 5052, 5070, 5072, 6050, 6150];

struct Wire {
    scene: Scene,
    phones: Vec<Party>,
    pbx: Party,
}

/// What became of one message.
struct Outcome {
    forwarded: Vec<Vec<u8>>,
    answers: Vec<String>,
}

impl Wire {
    fn start(net: u8) -> Wire {
        let scene = Layout::new(net).start(&one_pbx(net));
        let host = |port| SocketAddr::from(([127, 40, net, 31], port));
        let phones = PORTS.map(|port| Party::bind(host(port))).into();
        let pbx = scene.pbx(1);
        Wire { scene, phones, pbx }
    }

    /// Sends it, and then a sound request that must come through and be answered.
    fn send(&self, message: &[u8]) -> Outcome {
        let phone = &self.phones[0];
        let last = Request::new("INFO", "sip:last@example.com", phone);
        let call_id = last.value("Call-ID").to_owned();
        phone.send(self.scene.phones(), message);
        phone.send(self.scene.phones(), last.text());
        let mut forwarded = Vec::new();
        loop {
            let (bytes, _) = self.pbx.poll(rig::party::PATIENCE).expect("the last request comes through");
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if text.contains(&call_id) {
                self.pbx.answer(self.scene.pbxs(), &text, "200 OK", "last", "");
                break;
            }
            forwarded.push(bytes);
        }
        let mut answers = Vec::new();
        loop {
            let answer = phone.receive("the answer to the last request");
            if answer.contains(&call_id) {
                break;
            }
            answers.push(answer);
        }
        for phone in &self.phones[1..] {
            while let Some((bytes, _)) = phone.poll(std::time::Duration::from_millis(1)) {
                answers.push(String::from_utf8_lossy(&bytes).into_owned());
            }
        }
        Outcome { forwarded, answers }
    }

    /// `forward`, a status code, or `drop`; forwarded with other edits than those of SPEC 4.1 is an error.
    fn outcome(&self, message: &[u8], line: Option<&str>) -> Result<String, String> {
        let Outcome { forwarded, answers } = self.send(message);
        match (&forwarded[..], &answers[..]) {
            ([], []) => Ok("drop".into()),
            ([], [answer]) => {
                let code = text::status(answer).ok_or_else(|| format!("no response: {answer}"))?;
                Ok(code.to_string())
            }
            ([got], []) => {
                let source = self.phones[0].address;
                let passage = Passage { source, left_by: self.scene.pbxs(), line };
                beyond_edits(message, got, &passage)?;
                Ok("forward".into())
            }
            _ => Err(format!("{} forwarded, {} answers: {answers:?}", forwarded.len(), answers.len())),
        }
    }
}

/// Rows of a table of tab-separated columns, by the names in its first line; lines that begin with # are not read.
fn rows(text: &str) -> Vec<BTreeMap<&str, &str>> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let names: Vec<&str> = lines.next().expect("the first line names the columns").split('\t').collect();
    lines.map(|line| names.iter().copied().zip(line.split('\t')).collect()).collect()
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn fail_with(faults: &[String]) {
    assert!(faults.is_empty(), "{} messages fared otherwise:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn rfc_4475_and_5118_our_own_messages() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture");
    let table = String::from_utf8(read(&folder.join("expect.tsv"))).expect("the table is UTF-8");
    let rows = rows(&table);
    assert_eq!(rows.len(), 62, "49 tests of RFC 4475, baddn twice, 12 of RFC 5118");
    let wire = Wire::start(1);
    let mut faults = Vec::new();
    for row in &rows {
        let message = read(&folder.join(format!("{}.sip", row["file"])));
        let line = Some(row["line"]).filter(|line| !line.is_empty());
        let outcome = wire.outcome(&message, line).unwrap_or_else(|error| error);
        if outcome != row["expect"] {
            faults.push(format!("{} ({}): not {}, but {outcome}", row["file"], row["oddity"], row["expect"]));
        }
    }
    fail_with(&faults);
}

/// The messages and their table are one set: nothing in the folder that the table does not know.
#[test]
fn every_torture_message_stands_in_the_table() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torture");
    let table = String::from_utf8(read(&folder.join("expect.tsv"))).expect("the table is UTF-8");
    let mut named: Vec<String> = rows(&table).iter().map(|row| format!("{}.sip", row["file"])).collect();
    let mut there = Vec::new();
    for rfc in ["rfc4475", "rfc5118"] {
        for entry in fs::read_dir(folder.join(rfc)).expect("the folder is there") {
            let name = entry.expect("it can be read").file_name();
            there.push(format!("{rfc}/{}", name.to_string_lossy()));
        }
    }
    named.sort();
    there.sort();
    assert_eq!(named, there);
}

#[test]
fn rfc_4475_and_5118_the_archives_messages() {
    let Some(corpora) = std::env::var_os("TIDINGS_CORPORA") else {
        println!("TIDINGS_CORPORA is not set: the archive's messages are for those who have them");
        return;
    };
    let wire = Wire::start(2);
    let mut faults = Vec::new();
    let mut count = 0;
    for rfc in ["rfc4475", "rfc5118"] {
        let folder = Path::new(&corpora).join(rfc);
        let table = String::from_utf8(read(&folder.join("EXPECT.tsv"))).expect("the table is UTF-8");
        for row in rows(&table) {
            let message = read(&folder.join(row["file"]));
            // The column is a pattern of one literal.
            let line = Some(row["line"].replace('\\', "")).filter(|line| !line.is_empty());
            let outcome = wire.outcome(&message, line.as_deref()).unwrap_or_else(|error| error);
            if !row["accept"].split('|').any(|accepted| accepted == outcome) {
                faults.push(format!("{rfc}/{}: not {}, but {outcome}", row["file"], row["accept"]));
            }
            count += 1;
        }
    }
    println!("{count} messages of the archive");
    fail_with(&faults);
}
