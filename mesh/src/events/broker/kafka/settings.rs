//! What the setting `events` says, and librdkafka's settings for each kind of
//! client.

use rdkafka::ClientConfig;
use secrecy::ExposeSecret as _;

use crate::{
    Error,
    config::{Config, KafkaConfig},
};

/// A record's headers, key and framing, over its body.
const OVERHEAD_BYTES: usize = 64 * 1024;

/// `kafka://host:port[,host:port…][?partitions=N&replication=N]`, read, and how
/// these are reached.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The brokers to begin with, as librdkafka wants them.
    pub(super) servers: String,
    /// How many partitions a topic is made with. Eight let eight consumers share
    /// the work, and cost a broker next to nothing; more can't be taken back,
    /// and adding some later moves keys, which breaks their order once.
    pub(super) partitions: i32,
    /// How many brokers keep each event, where there are as many.
    pub(super) replication: i32,
    /// How many bytes a record may have.
    pub(super) record_bytes: usize,
    security: KafkaConfig,
}

impl Settings {
    /// Reads `events` and the section `kafka`.
    pub(super) fn read(config: &Config) -> Result<Self, Error> {
        let mut settings = Self::parse(&config.events, config.limits.message_bytes)?;
        check(&config.kafka, cfg!(feature = "kafka-tls"))?;
        settings.security = config.kafka.clone();
        Ok(settings)
    }

    /// Reads `events`. A message of `message_bytes` must fit into a record as
    /// JSON, with its bytes in base64: twice its size is enough.
    pub(super) fn parse(events: &str, message_bytes: usize) -> Result<Self, Error> {
        let form = "expected `kafka://host:port[,host:port…][?partitions=8&replication=3]`";
        let wrong =
            |cause: String| Error::setting("events", masked(events), format!("{cause}; {form}"));
        let rest = events
            .strip_prefix("kafka://")
            .ok_or_else(|| wrong("it doesn't begin with `kafka://`".into()))?;
        if rest.contains('@') {
            return Err(wrong("set `kafka.username` and `kafka.password` instead".into()));
        }
        let (servers, query) = rest.split_once('?').unwrap_or((rest, ""));
        let servers = servers.trim_end_matches('/');
        for server in servers.split(',') {
            let port = server.rsplit_once(':').filter(|(host, _)| !host.is_empty());
            if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
                return Err(wrong(format!("`{server}` is no host and port")));
            }
        }
        let mut settings = Self {
            servers: servers.to_owned(),
            partitions: 8,
            replication: 3,
            record_bytes: message_bytes.saturating_mul(2).min(512 << 20) + OVERHEAD_BYTES,
            security: KafkaConfig::default(),
        };
        for (name, value) in url::form_urlencoded::parse(query.as_bytes()) {
            let number = value.parse().ok().filter(|n| (1..=1000).contains(n));
            let number = number.ok_or_else(|| wrong(format!("`{name}` must be 1 to 1000")))?;
            match &*name {
                "partitions" => settings.partitions = number,
                "replication" => settings.replication = number,
                _ => return Err(wrong(format!("there is no parameter `{name}`"))),
            }
        }
        Ok(settings)
    }

    /// What every client has: give up on a silent peer soon, come back soon.
    fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", &self.servers)
            .set("client.id", "omnibridge")
            .set("socket.keepalive.enable", "true")
            .set("socket.timeout.ms", "10000")
            .set("socket.connection.setup.timeout.ms", "5000")
            .set("reconnect.backoff.ms", "100")
            .set("reconnect.backoff.max.ms", "2000")
            .set("message.max.bytes", self.record_bytes.to_string());
        secure(&mut config, &self.security);
        config
    }

    /// For the one call it is made for. Nobody reads its log, so it writes none
    /// that would pile up.
    pub(super) fn admin(&self) -> ClientConfig {
        let mut config = self.client();
        config.set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg);
        config
    }

    /// For a producer whose every report is awaited.
    pub(super) fn producer(&self) -> ClientConfig {
        let mut config = self.client();
        config
            .set("acks", "all")
            .set("enable.idempotence", "true")
            // A record that fails takes all behind it along, so that none of
            // its key overtakes it; see the publisher.
            .set("enable.gapless.guarantee", "true")
            .set("max.in.flight.requests.per.connection", "1")
            // Time limits are the publisher's: librdkafka's own would take one
            // record out of the middle of a key.
            .set("message.timeout.ms", "0")
            // As Kafka's own clients do, so that all agree on a key's partition.
            .set("partitioner", "murmur2_random")
            .set("compression.type", "lz4")
            // A batch comes at once; what waits for the request on its way goes
            // together.
            .set("linger.ms", "0")
            .set("queue.buffering.max.messages", "100000")
            .set("queue.buffering.max.kbytes", self.queue_kbytes(64 * 1024))
            // A topic that isn't there is told as that, before the deadline.
            .set("topic.metadata.propagation.max.ms", "5000");
        config
    }

    /// For a member of `group`, or for a reader without one.
    pub(super) fn consumer(&self, group: &str) -> ClientConfig {
        let mut config = self.client();
        config
            .set("group.id", group)
            // What `commit` stores, and nothing else, is committed in the
            // background, and before partitions are given away.
            .set("enable.auto.offset.store", "false")
            .set("enable.auto.commit", "true")
            .set("auto.commit.interval.ms", "200")
            .set("auto.offset.reset", "earliest")
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("isolation.level", "read_committed")
            .set("check.crcs", "true")
            // How long the partitions of a killed process wait for another.
            .set("session.timeout.ms", "10000")
            .set("heartbeat.interval.ms", "3000")
            // `next` is what Kafka takes for life. A subscriber with its hands full
            // of an event that fails stays away for a while; one that stays away
            // longer than this hangs, and the group goes on without it.
            .set("max.poll.interval.ms", "900000")
            // New topics are seen within 2 s.
            .set("topic.metadata.refresh.interval.ms", "1000")
            .set("metadata.max.age.ms", "3000")
            // A long poll holds up what else goes over its connection, such as
            // the first fetch from a new partition.
            .set("fetch.wait.max.ms", "100")
            .set("fetch.max.bytes", self.fetch_bytes(16 << 20))
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", self.queue_kbytes(16 * 1024))
            // With its default of a second, a queue that was full once stays
            // empty for the rest of it.
            .set("fetch.queue.backoff.ms", "10");
        config
    }

    fn fetch_bytes(&self, usual: usize) -> String {
        usual.max(self.record_bytes).to_string()
    }

    fn queue_kbytes(&self, usual: usize) -> String {
        usual.max(2 * self.record_bytes / 1024).to_string()
    }
}

/// The mechanism that sends the password itself; it needs no OpenSSL.
const PLAIN: &str = "PLAIN";
/// All that are supported.
const MECHANISMS: [&str; 3] = [PLAIN, "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// Whether the settings fit each other and this build, which has OpenSSL or not. What is
/// asked for must be had: nothing falls back to less.
fn check(kafka: &KafkaConfig, has_openssl: bool) -> Result<(), Error> {
    let KafkaConfig { tls, ca, certificate, key, mechanism, username, password } = kafka;
    let wrong = |key: &str, why: &str| Err(Error::setting(key, "…", why));
    if !tls && (ca.is_some() || certificate.is_some() || key.is_some()) {
        return wrong("kafka.tls", "certificates need `kafka.tls = true`");
    }
    if certificate.is_some() != key.is_some() {
        return wrong(
            "kafka.certificate",
            "set both `kafka.certificate` and `kafka.key`, or neither",
        );
    }
    if username.is_some() != password.is_some() {
        return wrong(
            "kafka.username",
            "set both `kafka.username` and `kafka.password`, or neither",
        );
    }
    if username.is_some() && !MECHANISMS.contains(&mechanism.as_str()) {
        let expected = format!("expected one of {}", MECHANISMS.join(", "));
        return Err(Error::setting("kafka.mechanism", mechanism, expected));
    }
    let scram = username.is_some() && mechanism != PLAIN;
    if (*tls || scram) && !has_openssl {
        let needs = if *tls { "kafka.tls" } else { "kafka.mechanism" };
        return wrong(needs, "this `omni` can't do that: build it with `--features kafka-tls`");
    }
    if username.is_some() && !tls && mechanism == PLAIN {
        tracing::warn!("the password goes to Kafka in the clear: set `kafka.tls = true`");
    }
    Ok(())
}

fn secure(config: &mut ClientConfig, kafka: &KafkaConfig) {
    let KafkaConfig { tls, ca, certificate, key, mechanism, username, password } = kafka;
    let protocol = match (tls, username.is_some()) {
        (false, false) => return,
        (true, false) => "ssl",
        (false, true) => "sasl_plaintext",
        (true, true) => "sasl_ssl",
    };
    config.set("security.protocol", protocol);
    if *tls {
        config.set("ssl.endpoint.identification.algorithm", "https");
        match ca {
            Some(ca) => config.set("ssl.ca.pem", ca),
            // OpenSSL is our own, and doesn't know where the system has them.
            None => config.set("ssl.ca.location", "probe"),
        };
    }
    if let (Some(certificate), Some(key)) = (certificate, key) {
        config.set("ssl.certificate.pem", certificate).set("ssl.key.pem", key.expose_secret());
    }
    if let (Some(username), Some(password)) = (username, password) {
        config
            .set("sasl.mechanism", mechanism)
            .set("sasl.username", username)
            .set("sasl.password", password.expose_secret());
    }
}

/// The setting without what may be a password.
fn masked(events: &str) -> String {
    match events.rsplit_once('@') {
        Some((_, servers)) => format!("kafka://********@{servers}"),
        None => events.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_do_not_fit_together_are_refused() {
        let said = |kafka: KafkaConfig| check(&kafka, true).unwrap_err().to_string();
        let pem = || Some("pem".to_owned());
        let word = || Some("hunter2".into());
        let plain = KafkaConfig {
            mechanism: PLAIN.into(),
            username: Some("u".into()),
            password: word(),
            ..Default::default()
        };
        assert!(said(KafkaConfig { ca: pem(), ..Default::default() }).contains("kafka.tls = true"));
        let half = KafkaConfig { tls: true, certificate: pem(), ..Default::default() };
        assert!(said(half).contains("kafka.key"));
        let half = said(KafkaConfig { password: word(), ..Default::default() });
        assert!(half.contains("kafka.username") && !half.contains("hunter2"), "{half}");
        check(&plain, false).unwrap();
        let mut config = ClientConfig::new();
        secure(&mut config, &plain);
        assert_eq!(config.get("security.protocol"), Some("sasl_plaintext"));
        let other = said(KafkaConfig { mechanism: "GSSAPI".into(), ..plain.clone() });
        assert!(other.contains("`GSSAPI`") && other.contains("SCRAM-SHA-512"), "{other}");
        let scram = KafkaConfig { mechanism: "SCRAM-SHA-256".into(), ..plain };
        for needy in [scram, KafkaConfig { tls: true, ..Default::default() }] {
            check(&needy, true).unwrap();
            let why = check(&needy, false).unwrap_err().to_string();
            assert!(why.contains("--features kafka-tls"), "{why}");
        }
    }

    #[test]
    fn servers_and_parameters_are_read() {
        let settings = Settings::parse("kafka://a:9092,[::1]:9093?partitions=3", 4 << 20).unwrap();
        assert_eq!(settings.servers, "a:9092,[::1]:9093");
        assert_eq!((settings.partitions, settings.replication), (3, 3));
        assert_eq!(settings.record_bytes, (8 << 20) + 64 * 1024);
    }

    #[test]
    fn what_is_wrong_is_named_and_a_password_is_not() {
        let error = |events: &str| Settings::parse(events, 1).unwrap_err().to_string();
        assert!(error("kafka://").contains("no host and port"));
        assert!(error("kafka://a").contains("`a`"));
        assert!(error("kafka://a:1,b:x").contains("`b:x`"));
        assert!(error("kafka://a:1?partition=3").contains("`partition`"));
        assert!(error("kafka://a:1?partitions=0").contains("1 to 1000"));
        let secret = error("kafka://user:hunter2@a:1");
        assert!(!secret.contains("hunter2") && secret.contains("password"));
    }
}
