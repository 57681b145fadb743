//! What a server is: its version, and what an acknowledged publish survives on it.

use eventbus_core::BrokerError;
use eventbus_core::counted::counted;

/// The oldest version that is taken.
const OLDEST: (u32, u32) = (7, 0);

/// What is known of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Server {
    /// "Redis" or "Valkey".
    name: &'static str,
    version: String,
    /// What it says of its commands: Valkey says which Redis it is like.
    compatible: Option<(u32, u32)>,
    replica: bool,
    /// Whether it writes an append-only file.
    appends: Option<bool>,
    /// When it syncs that: `always`, `everysec` or `no`.
    fsync: Option<String>,
    /// What it does once its memory is full.
    policy: Option<String>,
    /// The limit of its memory, where there is one.
    memory: u64,
    /// How many replicas follow it; none, where it does not say.
    replicas: Option<u64>,
    /// How many of them have to keep up, so that it takes anything.
    needed: u64,
    pub(crate) max_bulk: Option<usize>,
}

impl Server {
    /// Reads what `INFO` and `CONFIG GET` answer; a user may be forbidden either.
    pub(crate) fn read(info: Option<&str>, config: &[(String, String)]) -> Self {
        let fact = |name: &str| {
            let mut lines = info?.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
        };
        let setting =
            |name: &str| config.iter().find(|(other, _)| other == name).map(|(_, value)| value.clone());
        let valkey = fact("server_name") == Some("valkey");
        let version = fact("valkey_version").or_else(|| fact("redis_version")).unwrap_or_default();
        Self {
            name: if valkey { "Valkey" } else { "Redis" },
            version: version.to_owned(),
            compatible: fact("redis_version").and_then(|version| {
                let mut parts = version.split('.').map(str::parse);
                Some((parts.next()?.ok()?, parts.next()?.ok()?))
            }),
            replica: fact("role") == Some("slave"),
            appends: fact("aof_enabled").map(|enabled| enabled == "1"),
            fsync: setting("appendfsync"),
            policy: fact("maxmemory_policy").map(str::to_owned).or_else(|| setting("maxmemory-policy")),
            memory: fact("maxmemory").and_then(|bytes| bytes.parse().ok()).unwrap_or(0),
            replicas: fact("connected_slaves").and_then(|count| count.parse().ok()),
            needed: setting("min-replicas-to-write").and_then(|count| count.parse().ok()).unwrap_or(0),
            max_bulk: setting("proto-max-bulk-len").and_then(|bytes| bytes.parse().ok()),
        }
    }

    /// Refuses what cannot be a broker.
    pub(crate) fn check(&self, address: &str) -> Result<(), BrokerError> {
        if let Some(version) = self.compatible.filter(|version| *version < OLDEST) {
            return Err(BrokerError::new(format!(
                "{} at {address} is version {}.{}, and 7.0 is the oldest that is taken: earlier ones lose deliveries whose \
                 entries were trimmed without a word; upgrade the server",
                self.name, version.0, version.1
            )));
        }
        if self.replica {
            return Err(BrokerError::new(format!(
                "{} at {address} is a replica, which cannot be written to; name its primary, or let sentinels find it \
                 (`redis+sentinel://…`)",
                self.name
            )));
        }
        Ok(())
    }

    /// Refuses a server that has fewer replicas than are to have each event.
    pub(crate) fn check_replicas(&self, wanted: u32, address: &str) -> Result<(), BrokerError> {
        match self.replicas {
            Some(replicas) if replicas < u64::from(wanted) => Err(BrokerError::new(format!(
                "each event is to be with {} (`replicas`), and {} at {address} has {replicas}, so that no publish would be \
                 confirmed; add replicas to the server, or ask for fewer",
                counted(wanted as usize, "replica"),
                self.name
            ))),
            _ => Ok(()),
        }
    }

    /// What an acknowledged publish survives, in one line.
    pub(crate) fn describe(&self) -> String {
        let kept = match (self.appends, self.fsync.as_deref()) {
            (Some(false), _) => "no append-only file: what was acknowledged is in memory",
            (_, Some("always")) => "append-only file, synced before each answer",
            (_, Some("no")) => "append-only file, synced when the system does so",
            (Some(true), _) => {
                "append-only file, synced each second: a power cut may take the last one, and on a slow disk a crash too"
            }
            (None, _) => "what it keeps is not known, since the user may not ask (`INFO`)",
        };
        format!("{} {}: {kept}", self.name, self.version)
    }

    /// Where `Ok` of a publish means less than it says, if so many replicas are waited for.
    pub(crate) fn warnings(&self, waits_for: u32) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.appends == Some(false) {
            warnings.push(format!(
                "{} keeps what is published in memory only, and loses it when it ends; set `appendonly yes` on the server",
                self.name
            ));
        }
        if self.appends != Some(false) && self.fsync.as_deref() == Some("no") {
            warnings.push(format!(
                "{} leaves it to the system when to sync its file (`appendfsync no`), so that a power cut may take the last \
                 half a minute; set `appendfsync everysec` or `always` on the server",
                self.name
            ));
        }
        if let Some(policy) = self.policy.as_deref().filter(|policy| *policy != "noeviction") {
            let what = match policy.starts_with("allkeys") {
                true => "whole topics with all their events",
                false => "leases and the ids of what was just published",
            };
            let when = if self.memory == 0 {
                "once it has a limit (`maxmemory`)"
            } else {
                "once its memory is full"
            };
            warnings.push(format!(
                "{} removes {what} {when}, by its policy `{policy}`; set `maxmemory-policy noeviction` on the server, so \
                 that it refuses publishes instead",
                self.name
            ));
        }
        if self.replicas > Some(0) && self.needed == 0 && waits_for == 0 {
            warnings.push(format!(
                "{} answers before its replicas have what was published, so that a failover may lose the last of it, without a \
                 bound; set `min-replicas-to-write 1` and `min-replicas-max-lag 1` on the server, which bound that to what a \
                 replica lags, or wait for replicas with each publish (`?replicas=1`)",
                self.name
            ));
        }
        warnings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(facts: &str, config: &[(&str, &str)]) -> Server {
        let config: Vec<_> =
            config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Server::read(Some(facts), &config)
    }

    #[test]
    fn what_ok_means_is_said_and_where_it_means_less_there_is_a_warning() {
        let safe = "redis_version:7.0.15\r\nrole:master\r\naof_enabled:1\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";
        let always = server(safe, &[("appendfsync", "always")]);
        assert!(always.describe().ends_with("synced before each answer"), "{}", always.describe());
        assert!(always.warnings(0).is_empty() && always.check("a:1").is_ok());
        let seconds = server(safe, &[("appendfsync", "everysec")]);
        assert!(seconds.describe().contains("each second") && seconds.warnings(0).is_empty());
        for (facts, config, named) in [
            ("aof_enabled:0", "everysec", "set `appendonly yes`"),
            ("aof_enabled:1", "no", "set `appendfsync everysec`"),
            ("aof_enabled:1\nmaxmemory_policy:allkeys-lru\nmaxmemory:9", "always", "whole topics"),
            ("aof_enabled:1\nmaxmemory_policy:volatile-ttl", "always", "leases"),
            ("aof_enabled:1\nconnected_slaves:2", "always", "set `min-replicas-to-write 1`"),
        ] {
            let warnings = server(facts, &[("appendfsync", config)]).warnings(0);
            assert!(matches!(&warnings[..], [one] if one.contains(named)), "{warnings:?}");
        }
        assert!(server("aof_enabled:1\nconnected_slaves:2", &[]).warnings(1).is_empty());
        let bounded = [("appendfsync", "always"), ("min-replicas-to-write", "1")];
        assert!(server("aof_enabled:1\nconnected_slaves:2", &bounded).warnings(0).is_empty());
    }

    #[test]
    fn a_server_that_cannot_be_a_broker_is_refused_with_the_remedy() {
        let old = server("redis_version:6.2.14\nrole:master", &[]).check("a:1").unwrap_err().to_string();
        assert!(old.contains("version 6.2") && old.contains("7.0 is the oldest"), "{old}");
        let replica = server("redis_version:7.2.4\nrole:slave", &[]).check("a:1").unwrap_err().to_string();
        assert!(replica.contains("name its primary"), "{replica}");
    }

    #[test]
    fn a_server_with_too_few_replicas_is_refused_where_it_says_how_many_it_has() {
        let server = |facts| server(facts, &[]);
        let error = server("connected_slaves:1").check_replicas(2, "a:1").unwrap_err().to_string();
        assert!(error.contains("with 2 replicas (`replicas`)") && error.contains("has 1"), "{error}");
        assert!(server("connected_slaves:2").check_replicas(2, "a:1").is_ok());
        assert!(server("").check_replicas(2, "a:1").is_ok() && server("").check_replicas(0, "a:1").is_ok());
    }

    #[test]
    fn valkey_is_named_and_a_server_that_tells_nothing_is_taken() {
        let valkey = server("redis_version:7.2.4\nserver_name:valkey\nvalkey_version:9.1.2", &[]);
        assert!(valkey.describe().starts_with("Valkey 9.1.2"), "{}", valkey.describe());
        let silent = Server::read(None, &[]);
        assert!(silent.check("a:1").is_ok() && silent.describe().contains("`INFO`"));
    }
}
