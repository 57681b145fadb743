//! Trouble: what the client library and the server say, with what to do about it.

use eventbus_core::BrokerError;
use redis::{ErrorKind, RedisError};
use std::fmt;

/// Why something could not be done at the server.
#[derive(Clone)]
pub(crate) struct Trouble {
    what: String,
    /// What the client library or the server said.
    said: String,
    /// The first word of an error of the server.
    code: Option<String>,
    remedy: Option<&'static str>,
    /// Whether the connection is of no use any more.
    pub(crate) broken: bool,
    /// Whether it is of no use to wait, as with a wrong password.
    pub(crate) lasting: bool,
}

impl Trouble {
    /// Of an error of the client library, while `what` was done.
    pub(crate) fn of(what: impl Into<String>, error: &RedisError) -> Self {
        let said = error.to_string();
        let code = match error.kind() {
            ErrorKind::AuthenticationFailed => Some("WRONGPASS"),
            _ => error.code(),
        };
        let remedy = code.and_then(remedy).or_else(|| remedy_of_text(&said));
        let broken = match code {
            // The server is another one by now.
            Some(code) => code == "LOADING" || is_elsewhere(code, &said),
            None => error.is_io_error() || error.is_unrecoverable_error(),
        };
        let lasting = matches!(code, Some("WRONGPASS" | "NOAUTH" | "NOPERM"))
            || (code.is_none() && remedy.is_some() && !error.is_connection_refusal() && !error.is_timeout());
        let code = code.map(str::to_owned);
        Self { what: what.into(), said, code, remedy, broken, lasting }
    }

    /// Whether the server has answered with this code.
    pub(crate) fn is(&self, code: &str) -> bool {
        self.code.as_deref() == Some(code)
    }

    /// Of the text of an error that a script has caught.
    pub(crate) fn said(what: impl Into<String>, text: &str) -> Self {
        let code = text.split(' ').next().unwrap_or_default();
        let (said, remedy) = (text.to_owned(), remedy(code).or_else(|| remedy_of_text(text)));
        Self { what: what.into(), said, code: Some(code.to_owned()), remedy, broken: false, lasting: true }
    }

    /// Of something that is out of order, and stays so.
    pub(crate) fn lasting(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self { what: what.into(), said: said.into(), code: None, remedy: None, broken: true, lasting: true }
    }

    /// The same, with what was known before.
    pub(crate) fn because(mut self, cause: &str) -> Self {
        cause.clone_into(&mut self.said);
        self
    }

    /// The same, with what may be done about it.
    pub(crate) fn hint(mut self, remedy: &'static str) -> Self {
        self.remedy = Some(remedy);
        self
    }

    /// Whether it says what may be done about it.
    pub(crate) fn advises(&self) -> bool {
        self.remedy.is_some()
    }

    /// Of something that may be in order in a moment.
    pub(crate) fn passing(what: impl Into<String>, said: impl Into<String>) -> Self {
        Self { lasting: false, ..Self::lasting(what, said) }
    }

    /// Of an answer that did not come in time.
    pub(crate) fn late(what: impl Into<String>) -> Self {
        Self::passing(what, "the server has not answered in time")
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.said)?;
        self.remedy.map_or(Ok(()), |remedy| write!(f, "; {remedy}"))
    }
}

impl fmt::Debug for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<Trouble> for BrokerError {
    fn from(trouble: Trouble) -> Self {
        Self::new(trouble.to_string())
    }
}

/// Whether a server has said that what was asked of it is another one's by now, and so has done nothing.
pub(crate) fn is_elsewhere(code: &str, said: &str) -> bool {
    matches!(code, "READONLY" | "MOVED" | "ASK" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN")
        // A script, while its slot is being moved.
        || said.contains("access a non local key")
}

/// What to do about an error of the server, by its first word.
fn remedy(code: &str) -> Option<&'static str> {
    Some(match code {
        "WRONGPASS" => {
            "correct the user and the password in the address (`redis://user:password@host`, or `redis://:password@host` \
             without a user)"
        }
        "NOAUTH" => {
            "the server asks for a password: write `redis://:password@host` (`requirepass`), or \
             `redis://user:password@host`"
        }
        "NOPERM" => {
            "give the user what a broker needs: `ACL SETUSER <user> ~<prefix>:* +@read +@write +@stream +@scripting +@connection \
             +@transaction +info +config|get`"
        }
        "OOM" => {
            "the memory of the server is full: raise its `maxmemory`, or set a retention (`?retention_age=24h`); until then \
             nothing is stored"
        }
        "WRONGTYPE" => {
            "a key of this bus holds something else: remove that, or give the bus another prefix (`?prefix=…`)"
        }
        "READONLY" => {
            "the server is a replica by now: name its primary, or let sentinels find it (`redis+sentinel://…`)"
        }
        "MISCONF" => "the server cannot write its file, most likely since its disk is full: make room",
        "NOREPLICAS" => "too few replicas follow the server (`min-replicas-to-write`): bring them back",
        "CROSSSLOT" | "MOVED" => "the server is part of a cluster: write `redis+cluster://…`",
        "LOADING" => "the server is reading its file, and answers once it has",
        _ => return None,
    })
}

/// What to do about an error of the connection, which has no code.
fn remedy_of_text(said: &str) -> Option<&'static str> {
    let has = |part: &str| said.contains(part);
    Some(if has("The user executing the script") {
        return remedy("NOPERM");
    } else if has("invalid peer certificate") || has("UnknownIssuer") {
        "the server's certificate is not trusted: name the file of its authority (`?ca=ca.pem`), and the host as in the \
         certificate"
    } else if has("InvalidContentType") || has("corrupt message") {
        "if that is no TLS port, write `redis://…`, or name the TLS port"
    } else if has("invalid bulk length") {
        "what was sent is larger than the server takes: raise its `proto-max-bulk-len`"
    } else {
        return None;
    })
}
