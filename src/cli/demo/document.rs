//! The three event packages of the demo and their bodies: PIDF (RFC 3863), dialog-info (RFC 4235), message-summary
//! (RFC 3842). Every state carries the number of the change that made it, so that the time from PUBLISH to NOTIFY shows.

/// What a resource is, in one word, and which change made it so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// `open`, `closed`; `confirmed`, `terminated`; `yes`, `no`.
    pub word: String,
    /// 0: nobody has published yet.
    pub change: u64,
}

/// Packages that a PBX of the demo serves.
pub const PACKAGES: [&str; 3] = ["presence", "dialog", "message-summary"];

pub fn content_type(package: &str) -> &'static str {
    match package {
        "dialog" => "application/dialog-info+xml",
        "message-summary" => "application/simple-message-summary",
        _ => "application/pidf+xml",
    }
}

impl State {
    pub fn new(word: &str, change: u64) -> State {
        State { word: word.to_owned(), change }
    }

    /// The neutral state of RFC 3903 2: what subscribers see while nothing is published.
    pub fn neutral(package: &str) -> State {
        State::new(["closed", "terminated", "no"][index(package)], 0)
    }

    /// What a publisher says in this round of its changes: one word, then the other.
    pub fn word_of(package: &str, round: usize) -> &'static str {
        let words = [["open", "closed"], ["confirmed", "terminated"], ["yes", "no"]];
        words[index(package)][round % 2]
    }

    /// Reads a body of this package; `None` where it is none.
    pub fn read(package: &str, body: &str) -> Option<State> {
        let (word, change) = match package {
            "dialog" => (between(body, "<state>", "</state>")?, between(body, "<dialog id=\"c", "\"")?),
            "message-summary" => {
                (between(body, "Messages-Waiting: ", "\r\n")?, between(body, "Voice-Message: ", "/")?)
            }
            _ => (between(body, "<basic>", "</basic>")?, between(body, "<note>change ", "</note>")?),
        };
        Some(State::new(word, change.parse().ok()?))
    }

    /// Writes the body; `version` counts the documents of one subscription.
    pub fn write(&self, package: &str, entity: &str, version: u32) -> String {
        let State { word, change } = self;
        match package {
            "dialog" => format!(
                "<?xml version=\"1.0\"?>\r\n<dialog-info xmlns=\"urn:ietf:params:xml:ns:dialog-info\" \
                 version=\"{version}\" state=\"full\" entity=\"{entity}\">\r\n\
                 <dialog id=\"c{change}\"><state>{word}</state></dialog>\r\n</dialog-info>\r\n"
            ),
            "message-summary" => format!(
                "Messages-Waiting: {word}\r\nMessage-Account: {entity}\r\nVoice-Message: {change}/0 (0/0)\r\n"
            ),
            _ => format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\r\n\
                 <presence xmlns=\"urn:ietf:params:xml:ns:pidf\" entity=\"{entity}\">\r\n\
                 <tuple id=\"demo\"><status><basic>{word}</basic></status><note>change {change}</note></tuple>\r\n\
                 </presence>\r\n"
            ),
        }
    }
}

fn index(package: &str) -> usize {
    PACKAGES.iter().position(|p| *p == package).unwrap_or(0)
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    text.split_once(from)?.1.split_once(to).map(|(inner, _)| inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        for package in PACKAGES {
            let state = State::new(State::word_of(package, 17), 17);
            assert_eq!(State::read(package, &state.write(package, "sip:1001@x", 3)), Some(state));
            assert_eq!(State::read(package, "nothing of the kind"), None);
        }
    }
}
