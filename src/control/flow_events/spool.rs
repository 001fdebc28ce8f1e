//! Flow events that wait for the webhook's receiver: in memory, and in the state directory, so that they outlive the router.
//!
//! `flow-events.jsonl` has one event a line, in the order in which they came; `flow-events.done` says how many bytes of it
//! were delivered. An event is on the disk before anybody is told that it is taken, and noted as delivered only after it
//! was: killed at any moment the router delivers it once more, never less. Bounded; what is beyond is dropped and counted.
//! Without a state directory it is memory alone.

use std::{
    collections::VecDeque,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
};

use super::super::state_dir::{StateDir, replace};

/// With so much delivered, and more than what waits, the file is written anew.
const COMPACT: u64 = 1 << 20;
/// The note of what was delivered is written after so many events, and when none waits.
const NOTED: u32 = 64;

pub struct Spool {
    disk: Option<Disk>,
    /// Each with its line feed.
    waiting: VecDeque<Box<str>>,
    bytes: usize,
    most: usize,
}

struct Disk {
    path: PathBuf,
    done_path: PathBuf,
    file: File,
    /// Bytes of the file that were delivered, and how many events since that was noted.
    done: u64,
    unnoted: u32,
    /// Something could not be written: what the file holds is not certain, and it is written anew before all else.
    stale: bool,
}

impl Spool {
    /// What an earlier run left is taken up, whatever `most` (bytes) says.
    pub fn open(dir: Option<&StateDir>, most: usize) -> io::Result<Spool> {
        let mut spool = Spool { disk: None, waiting: VecDeque::new(), bytes: 0, most };
        let Some(dir) = dir else { return Ok(spool) };
        let path = dir.file("flow-events.jsonl");
        let done_path = dir.file("flow-events.done");
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path)?;
        let bytes = fs::read(&path)?;
        // A line that was cut short was never said to be taken.
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        file.set_len(whole as u64)?;
        let noted = fs::read_to_string(&done_path).ok().and_then(|text| text.trim().parse::<u64>().ok());
        // The note is of another file where it does not end at a line's end: then all is delivered again.
        let done = noted.filter(|done| {
            let done = usize::try_from(*done).unwrap_or(usize::MAX);
            done <= whole && (done == 0 || bytes[done - 1] == b'\n')
        });
        let done = done.unwrap_or(0);
        let text = String::from_utf8_lossy(&bytes[done as usize..whole]);
        for line in text.split_inclusive('\n') {
            spool.bytes += line.len();
            spool.waiting.push_back(line.into());
        }
        let mut disk = Disk { path, done_path, file, done, unnoted: 0, stale: false };
        disk.note()?;
        spool.disk = Some(disk);
        Ok(spool)
    }

    /// Takes events, each one line without its end; gives how many there was no room for. They are on the disk when this
    /// returns; `Err`: they are in memory alone.
    pub fn push(&mut self, events: impl Iterator<Item = String>) -> (u64, io::Result<()>) {
        let mut dropped = 0;
        let mut text = String::new();
        for mut event in events {
            event.push('\n');
            if self.bytes + event.len() > self.most {
                dropped += 1;
                continue;
            }
            self.bytes += event.len();
            text.push_str(&event);
            self.waiting.push_back(event.into());
        }
        let written = match &mut self.disk {
            Some(disk) if disk.stale => Err(io::ErrorKind::Other.into()),
            Some(disk) if !text.is_empty() => {
                disk.file.write_all(text.as_bytes()).and_then(|()| disk.file.sync_data())
            }
            _ => Ok(()),
        };
        if written.is_err() {
            // Half a line may stand in the file, and a note would be of bytes that are not there.
            return (dropped, self.rewrite());
        }
        (dropped, Ok(()))
    }

    /// The oldest that waits, without its line's end.
    pub fn first(&self) -> Option<&str> {
        self.waiting.front().map(|line| line.trim_end())
    }

    /// The oldest was delivered, or never will be.
    pub fn done(&mut self) -> io::Result<()> {
        let Some(line) = self.waiting.pop_front() else { return Ok(()) };
        self.bytes -= line.len();
        let empty = self.waiting.is_empty();
        let Some(disk) = &mut self.disk else { return Ok(()) };
        if disk.stale {
            return self.rewrite();
        }
        disk.done += line.len() as u64;
        disk.unnoted += 1;
        if empty {
            // Emptied first: a note beyond the file's end counts for nothing.
            disk.done = 0;
            let emptied = disk.file.set_len(0).and_then(|()| disk.note());
            disk.stale = emptied.is_err();
            return emptied;
        }
        if disk.done > COMPACT && disk.done > self.bytes as u64 {
            return self.rewrite();
        }
        if disk.unnoted >= NOTED { disk.note() } else { Ok(()) }
    }

    /// Writes what waits into a new file.
    fn rewrite(&mut self) -> io::Result<()> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        disk.stale = true;
        // First the note: should it end between the two, all is delivered again.
        disk.done = 0;
        disk.note()?;
        let text: String = self.waiting.iter().map(|line| &**line).collect();
        replace(&disk.path, text.as_bytes())?;
        disk.file = OpenOptions::new().read(true).append(true).open(&disk.path)?;
        disk.stale = false;
        Ok(())
    }

    /// Bytes that wait (gauge).
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Disk {
    fn note(&mut self) -> io::Result<()> {
        self.unnoted = 0;
        replace(&self.done_path, format!("{}\n", self.done).as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> (Scratch, StateDir) {
            let path = std::env::temp_dir().join(format!("tidings-spool-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            let dir = StateDir::open(path.clone()).expect("a directory in /tmp");
            (Scratch(path), dir)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn push(spool: &mut Spool, events: &[&str]) -> u64 {
        let (dropped, written) = spool.push(events.iter().map(|event| (*event).to_owned()));
        written.expect("written");
        dropped
    }

    fn rest(spool: &mut Spool) -> Vec<String> {
        let mut all = Vec::new();
        while let Some(first) = spool.first().map(str::to_owned) {
            all.push(first);
            spool.done().expect("noted");
        }
        all
    }

    #[test]
    fn what_was_not_delivered_is_there_after_a_restart_in_order() {
        let (_scratch, dir) = Scratch::new("order");
        let open = || Spool::open(Some(&dir), 1 << 20).expect("opened");
        let mut spool = open();
        assert_eq!(push(&mut spool, &["a", "b", "c"]), 0);
        drop(spool);
        let mut spool = open();
        assert_eq!(spool.first(), Some("a"));
        push(&mut spool, &["d"]);
        assert_eq!(rest(&mut spool), ["a", "b", "c", "d"]);
        assert_eq!(spool.bytes(), 0);
        drop(spool);
        let mut spool = open();
        assert_eq!(spool.first(), None);
        push(&mut spool, &["e"]);
        drop(spool);
        assert_eq!(rest(&mut open()), ["e"]);
    }

    #[test]
    fn after_a_failure_the_file_is_written_anew() {
        let (_scratch, dir) = Scratch::new("stale");
        let mut spool = Spool::open(Some(&dir), 4096).expect("a spool");
        push(&mut spool, &["one"]);
        let nowhere = PathBuf::from("/nonexistent/tidings/flow-events.jsonl");
        let disk = spool.disk.as_mut().expect("on the disk");
        disk.stale = true;
        let path = std::mem::replace(&mut disk.path, nowhere);
        let (dropped, written) = spool.push(["two".to_owned()].into_iter());
        assert!(dropped == 0 && written.is_err(), "in memory alone");
        spool.disk.as_mut().expect("on the disk").path = path.clone();
        push(&mut spool, &["three"]);
        assert_eq!(fs::read_to_string(path).expect("written"), "one\ntwo\nthree\n");
        spool.done().expect("noted");
        assert_eq!(spool.first(), Some("two"));
    }

    #[test]
    fn a_torn_line_is_cut_and_a_note_of_another_file_is_no_note() {
        let (scratch, dir) = Scratch::new("torn");
        let mut spool = Spool::open(Some(&dir), 1 << 20).expect("opened");
        push(&mut spool, &["one", "two"]);
        let file = scratch.0.join("flow-events.jsonl");
        fs::write(&file, "one\ntwo\nthr").expect("written");
        fs::write(scratch.0.join("flow-events.done"), "6\n").expect("written");
        let mut spool = Spool::open(Some(&dir), 1 << 20).expect("opened");
        push(&mut spool, &["four"]);
        assert_eq!(fs::read_to_string(&file).expect("read"), "one\ntwo\nfour\n");
        assert_eq!(rest(&mut spool), ["one", "two", "four"]);
        fs::write(&file, "one\ntwo\n").expect("written");
        fs::write(scratch.0.join("flow-events.done"), "4\n").expect("written");
        assert_eq!(rest(&mut Spool::open(Some(&dir), 1 << 20).expect("opened")), ["two"]);
    }

    #[test]
    fn bounded_in_memory_and_on_the_disk() {
        let (scratch, dir) = Scratch::new("bounded");
        let mut spool = Spool::open(Some(&dir), 10).expect("opened");
        assert_eq!(push(&mut spool, &["123", "456", "789"]), 1);
        assert_eq!(push(&mut spool, &["x"]), 0);
        assert_eq!(rest(&mut spool), ["123", "456", "x"]);
        // However much passes through it the file holds little more than what waits.
        let mut spool = Spool::open(Some(&dir), 1 << 20).expect("opened");
        let event = "x".repeat(1 << 16);
        push(&mut spool, &[&event]);
        for _ in 0..100 {
            push(&mut spool, &[&event]);
            spool.done().expect("noted");
        }
        let len = fs::metadata(scratch.0.join("flow-events.jsonl")).expect("there").len();
        assert!(len < 3 << 20, "{len}");
        drop(spool);
        let mut spool = Spool::open(Some(&dir), 1 << 20).expect("opened");
        let left = rest(&mut spool);
        assert!((1..=64).contains(&left.len()) && left.iter().all(|line| *line == event), "{}", left.len());
    }

    #[test]
    fn without_a_directory_it_is_memory() {
        let mut spool = Spool::open(None, 100).expect("opened");
        push(&mut spool, &["a", "b"]);
        assert_eq!(rest(&mut spool), ["a", "b"]);
    }
}
