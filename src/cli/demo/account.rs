//! Who a phone or publisher of the demo is, the requests that it starts from, and how they fail.

use std::net::SocketAddr;

use super::message::{Message, unique};

/// Who a phone or publisher is, and where it sends.
#[derive(Clone, Debug)]
pub struct Account {
    pub user: String,
    pub domain: String,
    pub proxy: SocketAddr,
}

impl Account {
    pub fn uri(&self, user: &str) -> String {
        format!("sip:{user}@{}", self.domain)
    }

    /// A request that starts a dialog or stands alone, about the user `resource`.
    pub fn request(&self, method: &str, resource: &str, tag: &str) -> Message {
        let uri = self.uri(resource);
        Message::request(method, &uri)
            .with("From", &format!("<{}>;tag={tag}", self.uri(&self.user)))
            .with("To", &format!("<{uri}>"))
            .with("Call-ID", &unique())
            .with("CSeq", &format!("1 {method}"))
    }
}

/// Why a request did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{} {}", .0.code(), .0.phrase())]
    Refused(Box<Message>),
    #[error("no answer")]
    Silence,
    #[error("no such subscription")]
    Unknown,
}

impl Failure {
    /// The status code; 0 where there was no answer.
    pub fn code(&self) -> u16 {
        match self {
            Failure::Refused(response) => response.code(),
            Failure::Silence | Failure::Unknown => 0,
        }
    }
}
