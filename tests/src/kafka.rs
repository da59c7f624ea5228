//! A real Kafka of a test's own that takes nobody without a certificate and a
//! password.

use std::{
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

use crate::{agent::free_ports, process::Process};

/// The user that it knows.
pub const USER: &str = "omni";
/// The user's password.
pub const PASSWORD: &str = "correct horse battery staple";

/// A running Kafka behind SASL and TLS; it ends when this is dropped.
pub struct SecureKafka {
    /// Where it is, as `host:port`.
    pub address: String,
    /// Whom it is vouched for by, in PEM.
    pub ca: String,
    /// A certificate that it takes, in PEM.
    pub certificate: String,
    /// The certificate's key, in PEM.
    pub key: String,
    _process: Process,
    _folder: tempfile::TempDir,
}

impl SecureKafka {
    /// Starts one. It takes some seconds more until it answers.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn start() -> Self {
        let tools = std::env::var("OMNI_TEST_BIN_DIR")
            .expect("OMNI_TEST_BIN_DIR isn't set: `compose/backends start` and load its env");
        let jars = Path::new(&tools).join("../kafka/lib/*");
        let ca = Authority::new();
        let (certificate, key) = ca.sign("client", ExtendedKeyUsagePurpose::ClientAuth);
        let (own, own_key) = ca.sign("broker", ExtendedKeyUsagePurpose::ServerAuth);
        let folder = tempfile::tempdir().expect("there is room");
        let write = |name: &str, text: &str| -> PathBuf {
            let file = folder.path().join(name);
            std::fs::write(&file, text).expect("there is room");
            file
        };
        let [inner, secure, controller] = free_ports();
        let config = format!(
            "process.roles=broker,controller\n\
             node.id=1\n\
             controller.quorum.voters=1@127.0.0.1:{controller}\n\
             listeners=PLAINTEXT://127.0.0.1:{inner},SECURE://127.0.0.1:{secure},\
             CONTROLLER://127.0.0.1:{controller}\n\
             listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SECURE:SASL_SSL,CONTROLLER:PLAINTEXT\n\
             inter.broker.listener.name=PLAINTEXT\n\
             controller.listener.names=CONTROLLER\n\
             listener.name.secure.sasl.enabled.mechanisms=SCRAM-SHA-512\n\
             listener.name.secure.scram-sha-512.sasl.jaas.config=\
             org.apache.kafka.common.security.scram.ScramLoginModule required;\n\
             listener.name.secure.ssl.keystore.type=PEM\n\
             listener.name.secure.ssl.keystore.location={}\n\
             listener.name.secure.ssl.truststore.type=PEM\n\
             listener.name.secure.ssl.truststore.location={}\n\
             listener.name.secure.ssl.client.auth=required\n\
             log.dirs={}\n\
             offsets.topic.replication.factor=1\n\
             offsets.topic.num.partitions=4\n\
             group.initial.rebalance.delay.ms=0\n\
             auto.create.topics.enable=false\n",
            write("broker.pem", &format!("{own_key}{own}")).display(),
            write("ca.pem", &ca.pem).display(),
            folder.path().join("data").display(),
        );
        let config = write("server.properties", &config);
        let java = |class: &str| {
            let mut command = Command::new("java");
            command.arg("-Xmx512m").arg("-cp").arg(&jars).arg(class);
            command
        };
        let user = format!("SCRAM-SHA-512=[name={USER},password={PASSWORD}]");
        let mut format = java("kafka.tools.StorageTool");
        format.args(["format", "--cluster-id", "b21uaWJyaWRnZS10ZXN0cw", "--config"]);
        let format = format.arg(&config).args(["--add-scram", &user]).output().expect("java runs");
        assert!(format.status.success(), "{}", String::from_utf8_lossy(&format.stderr));
        let mut broker = java("kafka.Kafka");
        broker.arg(&config);
        let process = Process::start(broker, folder.path().join("kafka.log"));
        let address = format!("127.0.0.1:{secure}");
        Self { address, ca: ca.pem, certificate, key, _process: process, _folder: folder }
    }

    /// An authority, in PEM, that vouches for nobody here.
    pub fn stranger() -> String {
        Authority::new().pem
    }
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = params("the test's CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).expect("it is sound").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name` at this machine, and its key.
    fn sign(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let key = KeyPair::generate().expect("keys can be made");
        let mut params = params(name);
        params.subject_alt_names = vec![rcgen::SanType::IpAddress(Ipv4Addr::LOCALHOST.into())];
        params.extended_key_usages = vec![usage];
        let signed = params.signed_by(&key, &self.issuer).expect("it is sound");
        (signed.pem(), key.serialize_pem())
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
