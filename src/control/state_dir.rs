//! The state directory: what must outlive a restart and belongs to this router alone (SPEC 3.1): the boot id, the token
//! key where none is configured, when backends were seen to restart, and who is banned.
//!
//! It is `state_dir` of the settings, else systemd's `$STATE_DIRECTORY`. Without one the router works, but tokens of
//! before a restart are void: that is said once, at start.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write as _,
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{StartError, tables::Failure};
use crate::{
    config::{Settings, settings::parse_ring},
    live::{Ban, Cause, Now},
};

/// Mode of every file in it.
const PRIVATE: u32 = 0o600;
/// What could not be written is tried again after so long, and said once in so long, in milliseconds.
const RETRY_MS: u64 = 10_000;
const QUIET_MS: u64 = 60_000;

/// A directory that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// The directory of these settings, made where it is not there yet.
    pub fn of(settings: &Settings) -> Result<Option<StateDir>, StartError> {
        StateDir::path_of(settings).map(StateDir::open).transpose()
    }

    fn path_of(settings: &Settings) -> Option<PathBuf> {
        let from_systemd = || {
            let listed = std::env::var_os("STATE_DIRECTORY")?;
            let listed = listed.to_string_lossy().into_owned();
            // Several are joined by colons; the first is ours.
            listed.split(':').next().filter(|first| !first.is_empty()).map(PathBuf::from)
        };
        settings.state_dir.clone().or_else(from_systemd)
    }

    pub fn open(path: PathBuf) -> Result<StateDir, StartError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(|error| StartError::State { path: path.clone(), error })?;
        Ok(StateDir { path })
    }

    /// A file of it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Counts this start and gives its number: one more than at the last start, after 65,535 from 0 again.
    pub fn next_boot(&self) -> Result<u16, StartError> {
        let path = self.path.join("boot");
        let fault = |error| StartError::State { path: path.clone(), error };
        let last = match fs::read_to_string(&path) {
            Ok(text) => Some(
                text.trim()
                    .parse::<u16>()
                    .map_err(|_| fault(io::Error::other("holds no boot number; remove it to begin anew")))?,
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(fault(error)),
        };
        // A new directory begins at random, so that a router that lost its own is not taken for what it was.
        let boot = match last {
            Some(last) => last.wrapping_add(1),
            None => u16::from_le_bytes(random()?),
        };
        replace(&path, format!("{boot}\n").as_bytes()).map_err(fault)?;
        Ok(boot)
    }

    /// When backends were last seen to restart (`restarts`, lines of `seconds name`): entity-tags of before are void
    /// (SPEC 6.2). What cannot be read is not there.
    pub fn restarts(&self) -> Result<BTreeMap<String, u64>, StartError> {
        let path = self.path.join("restarts");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StartError::State { path, error });
            }
            read => read.unwrap_or_default(),
        };
        let line = |line: &str| {
            let (seconds, name) = line.split_once(' ')?;
            Some((name.to_owned(), seconds.parse().ok()?))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    pub fn write_restarts(&self, restarts: &BTreeMap<String, u64>) -> io::Result<()> {
        // No name of a table holds a control character.
        let text: String = restarts.iter().map(|(name, at)| format!("{at} {name}\n")).collect();
        replace(&self.path.join("restarts"), text.as_bytes())
    }

    /// Who is banned, and was (`bans`, lines of `until since times cause address`). What cannot be read is not there.
    pub fn bans(&self) -> Result<BTreeMap<IpAddr, Ban>, StartError> {
        let path = self.path.join("bans");
        let text = match fs::read_to_string(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StartError::State { path, error });
            }
            read => read.unwrap_or_default(),
        };
        let line = |line: &str| {
            let mut words = line.split(' ');
            let until_unix_s = words.next()?.parse().ok()?;
            let since_unix_s = words.next()?.parse().ok()?;
            let times = words.next()?.parse().ok()?;
            let cause = words.next()?;
            let cause = Cause::ALL.into_iter().find(|known| known.label() == cause)?;
            let address = words.next()?.parse().ok()?;
            Some((address, Ban { cause, since_unix_s, until_unix_s, times }))
        };
        Ok(text.lines().filter_map(line).collect())
    }

    pub fn write_bans(&self, bans: &BTreeMap<IpAddr, Ban>) -> io::Result<()> {
        let line = |(ip, ban): (&IpAddr, &Ban)| {
            let Ban { cause, since_unix_s, until_unix_s, times } = ban;
            format!("{until_unix_s} {since_unix_s} {times} {} {ip}\n", cause.label())
        };
        let text: String = bans.iter().map(line).collect();
        replace(&self.path.join("bans"), text.as_bytes())
    }

    /// The router's own key ring (`token.key`), made at first need.
    pub fn own_keys(&self) -> Result<Keys, StartError> {
        let path = self.path.join(OWN_KEYS);
        match read_keys(&path) {
            Err(StartError::KeyFile { error, .. }) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        let key: [u8; 16] = random()?;
        let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
        replace(&path, format!("0 {hex}\n").as_bytes()).map_err(|error| StartError::State { path, error })?;
        Ok(vec![(0, key)])
    }
}

/// What was written last of something that is kept in the state directory.
pub(super) struct Kept<T> {
    written: T,
    /// While it cannot be written.
    failing: Option<Failing>,
}

struct Failing {
    retry_ms: u64,
    said_ms: u64,
}

impl<T: PartialEq> Kept<T> {
    pub fn new(written: T) -> Kept<T> {
        Kept { written, failing: None }
    }

    /// Writes what there is at `present`, where that is not what was written. What fails is tried again, whether or not it
    /// changes meanwhile.
    pub fn keep(&mut self, what: &str, present: T, now: Now, write: impl FnOnce(&T) -> io::Result<()>) {
        let ms = now.mono_ms;
        if self.written == present || self.failing.as_ref().is_some_and(|failing| ms < failing.retry_ms) {
            return;
        }
        match write(&present) {
            Ok(()) => {
                if self.failing.take().is_some() {
                    tracing::info!(what, "kept in the state directory again");
                }
                self.written = present;
            }
            Err(error) => {
                let said_ms = self.failing.as_ref().map(|failing| failing.said_ms);
                let quiet_since = said_ms.filter(|said_ms| ms < said_ms + QUIET_MS);
                if quiet_since.is_none() {
                    tracing::warn!(what, %error, "cannot be kept in the state directory; tried again");
                }
                let said_ms = quiet_since.unwrap_or(ms);
                self.failing = Some(Failing { retry_ms: ms + RETRY_MS, said_ms });
            }
        }
    }
}

/// Token keys with their ids; the first signs.
pub type Keys = Vec<(u8, [u8; 16])>;

/// In the state directory.
const OWN_KEYS: &str = "token.key";

/// The ring that a router with these settings has, as far as it stands in files; `None` where there is none yet.
pub fn known_keys(settings: &Settings) -> Result<Option<Keys>, StartError> {
    let tokens = &settings.tokens;
    if !tokens.keys.is_empty() {
        return Ok(Some(tokens.keys.clone()));
    }
    if let Some(path) = &tokens.key_file {
        return read_keys(path).map(Some);
    }
    let Some(dir) = StateDir::path_of(settings) else { return Ok(None) };
    match read_keys(&dir.join(OWN_KEYS)) {
        Err(StartError::KeyFile { error, .. }) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        found => found.map(Some),
    }
}

/// Reads a key file (SPEC 3.1); nobody but its owner may be able to.
pub fn read_keys(path: &Path) -> Result<Keys, StartError> {
    let fault = |error| StartError::KeyFile { path: path.to_owned(), error };
    let mut file = fs::File::open(path).map_err(fault)?;
    let mode = file.metadata().map_err(fault)?.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StartError::KeyMode { path: path.to_owned(), mode });
    }
    let mut text = String::new();
    io::Read::read_to_string(&mut file, &mut text).map_err(fault)?;
    let name = path.display().to_string();
    parse_ring(&name, &text)
        .map_err(|faults| StartError::Refused(Failure::of(&name, crate::net::now().unix_s, faults)))
}

/// Random bytes from the system.
pub fn random<const N: usize>() -> Result<[u8; N], StartError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| StartError::Random(error.to_string()))?;
    Ok(bytes)
}

/// Writes a file whole or not at all, on the disk before it has its name; when this returns the name is on the disk too.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut file =
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(PRIVATE).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match fs::File::open(dir)?.sync_all() {
        // Some file systems do not do that for directories, and need not.
        Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::Unsupported) => {
            Ok(())
        }
        synced => synced,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A directory of this test alone, removed at its end.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let path = std::env::temp_dir().join(format!("tidings-state-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Scratch(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn restarts_are_read_as_they_were_written() {
        let scratch = Scratch::new("restarts");
        let dir = StateDir::open(scratch.0.clone()).expect("a directory in /tmp");
        assert!(dir.restarts().expect("none yet").is_empty());
        let seen = BTreeMap::from([("pbx 1".to_owned(), 1_700_000_000), ("pbx2".to_owned(), 5)]);
        dir.write_restarts(&seen).expect("written");
        assert_eq!(dir.restarts().expect("read"), seen);
        fs::write(dir.path.join("restarts"), "rubbish\n7 pbx3\n-1 x\n").expect("written");
        assert_eq!(dir.restarts().expect("read"), BTreeMap::from([("pbx3".to_owned(), 7)]));
    }

    #[test]
    fn bans_are_read_as_they_were_written() {
        let scratch = Scratch::new("bans");
        let dir = StateDir::open(scratch.0.clone()).expect("a directory in /tmp");
        assert!(dir.bans().expect("none yet").is_empty());
        let ban = |cause| Ban { cause, since_unix_s: 5, until_unix_s: 1_700_000_000, times: 3 };
        let bans: BTreeMap<IpAddr, Ban> = BTreeMap::from([
            ([192, 0, 2, 1].into(), ban(Cause::Malformed)),
            ("2001:db8::".parse().expect("an address"), ban(Cause::Operator)),
        ]);
        dir.write_bans(&bans).expect("written");
        assert_eq!(dir.bans().expect("read"), bans);
        fs::write(dir.path.join("bans"), "rubbish\n9 8 7 excess 192.0.2.7\n9 8 7 whim 192.0.2.8\n")
            .expect("written");
        let expected = Ban { cause: Cause::Excess, since_unix_s: 8, until_unix_s: 9, times: 7 };
        assert_eq!(dir.bans().expect("read"), BTreeMap::from([([192, 0, 2, 7].into(), expected)]));
    }

    #[test]
    fn what_could_not_be_written_is_written_later_though_nothing_changes() {
        let scratch = Scratch::new("kept");
        let dir = StateDir::open(scratch.0.clone()).expect("a directory in /tmp");
        let seen = BTreeMap::from([("pbx1".to_owned(), 5)]);
        let mut kept = Kept::new(BTreeMap::new());
        let mut tries = 0;
        let mut keep_at = |mono_ms| {
            let now = Now { mono_ms, ..crate::net::now() };
            kept.keep("restarts of backends", seen.clone(), now, |seen| {
                tries += 1;
                dir.write_restarts(seen)
            });
            tries
        };
        fs::remove_dir_all(&scratch.0).expect("ours");
        assert_eq!(keep_at(1_000), 1);
        fs::create_dir(&scratch.0).expect("its place is free");
        assert_eq!(keep_at(2_000), 1, "not each second");
        assert_eq!(keep_at(11_000), 2);
        assert_eq!(dir.restarts().expect("read"), seen);
        assert_eq!(keep_at(60_000), 2, "it is written");
    }

    #[test]
    fn each_start_counts_one_boot_and_the_key_stays() {
        let scratch = Scratch::new("boot");
        let dir = StateDir::open(scratch.0.join("deep")).expect("a directory in /tmp");
        let first = dir.next_boot().expect("boot");
        let keys = dir.own_keys().expect("keys");
        assert_eq!(dir.next_boot().expect("boot"), first.wrapping_add(1));
        assert_eq!(dir.own_keys().expect("keys"), keys);
        let mode = fs::metadata(scratch.0.join("deep/token.key")).expect("token.key").mode() & 0o777;
        assert_eq!(mode, 0o600);
        fs::write(scratch.0.join("deep/boot"), "65535\n").expect("write");
        assert_eq!(dir.next_boot().expect("boot"), 0);
    }

    #[test]
    fn a_boot_file_of_rubbish_is_told_not_overwritten() {
        let scratch = Scratch::new("rubbish");
        let dir = StateDir::open(scratch.0.clone()).expect("a directory in /tmp");
        fs::write(scratch.0.join("boot"), "many\n").expect("write");
        let error = dir.next_boot().expect_err("no number").to_string();
        assert!(error.contains("boot") && error.contains("no boot number"), "{error}");
    }

    #[test]
    fn a_key_file_that_others_can_read_is_refused() {
        let scratch = Scratch::new("mode");
        let dir = StateDir::open(scratch.0.clone()).expect("a directory in /tmp");
        let path = scratch.0.join("ring");
        fs::write(&path, "3 00112233445566778899aabbccddeeff\n").expect("write");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).expect("chmod");
        let error = read_keys(&path).expect_err("mode 0640").to_string();
        assert!(error.contains("0640") && error.contains("chmod 600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).expect("chmod");
        assert_eq!(read_keys(&path).expect("mode 0400")[0].0, 3);
        assert_eq!(dir.own_keys().expect("its own")[0].0, 0);
    }

    #[test]
    fn a_file_in_the_way_of_the_directory_is_a_clear_error() {
        let scratch = Scratch::new("way");
        fs::write(&scratch.0, "").expect("write");
        let error = StateDir::open(scratch.0.join("state")).expect_err("a file is in the way").to_string();
        assert!(error.contains("state"), "{error}");
        fs::remove_file(&scratch.0).expect("remove");
    }
}
