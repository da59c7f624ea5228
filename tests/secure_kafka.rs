//! A Kafka that takes nobody without a certificate and a password.

use tests::{
    Layout, Mesh,
    kafka::{PASSWORD, SecureKafka, USER},
    mesh::new_id,
};
use watchdog::Watchdog;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_is_reached_by_tls_with_a_certificate_and_a_password() {
    let _watchdog = Watchdog::start();
    let kafka = SecureKafka::start();
    let settings = [
        ("OMNI_EVENTS", format!("kafka://{}", kafka.address)),
        ("OMNI_KAFKA__TLS", "true".to_owned()),
        ("OMNI_KAFKA__CA", kafka.ca.clone()),
        ("OMNI_KAFKA__CERTIFICATE", kafka.certificate.clone()),
        ("OMNI_KAFKA__KEY", kafka.key.clone()),
        ("OMNI_KAFKA__USERNAME", USER.to_owned()),
        ("OMNI_KAFKA__PASSWORD", PASSWORD.to_owned()),
    ];
    let mesh = Mesh::start_with(Layout::Serve, &settings).await;
    let posted = mesh.post(&new_id(), b"{}").await;
    let correlation = posted.body["correlation_id"].as_str().expect("it is acknowledged");
    mesh.each_is_in_the_trail(&[correlation.to_owned()]).await;

    let refused = |setting: &str, value: &str| {
        let mut command = mesh.command_of(&["events", "topics"]);
        let output = command.env(setting, value).output().unwrap();
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused("OMNI_KAFKA__PASSWORD", "hunter2");
    assert!(said.contains("SASL authentication error"), "{said}");
    assert!(!said.contains("hunter2") && !said.contains(PASSWORD), "{said}");
    let said = refused("OMNI_KAFKA__CA", &SecureKafka::stranger());
    assert!(said.contains("certificate verify failed"), "{said}");
    let said = refused("OMNI_KAFKA__CA", "no certificate");
    assert!(said.contains("ssl.ca.pem"), "{said}");
    // It proves to be 127.0.0.1, and nobody else.
    let elsewhere = kafka.address.replace("127.0.0.1", "kafka://localhost");
    let said = refused("OMNI_EVENTS", &elsewhere);
    assert!(said.contains("certificate verify failed"), "{said}");
    for service in ["gateway", "hook-receiver", "audit"] {
        let log = mesh.log(service);
        assert!(!log.contains(PASSWORD) && !log.contains("PRIVATE KEY"), "{log}");
    }
    mesh.stop().await;
}
