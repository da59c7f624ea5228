//! No session is resumed: each handshake shows both certificates anew.

use rustls::{HandshakeKind, client::Resumption, server::ServerSessionMemoryCache};

use super::*;

/// A client that would resume, and a server that would let it.
fn willing(identity: &Identity) -> (ClientConfig, ServerConfig) {
    let _ = aws_lc_rs::default_provider().install_default();
    let mut client = ClientConfig::clone(&identity.client_config("b"));
    client.resumption = Resumption::in_memory_sessions(32);
    client.enable_early_data = true;
    let mut server = ServerConfig::clone(&identity.server_config());
    server.session_storage = ServerSessionMemoryCache::new(32);
    server.send_tls13_tickets = 2;
    server.max_early_data_size = 1024;
    (client, server)
}

/// Whether the second of two handshakes is a full one, without early data.
async fn is_full(client: Arc<ClientConfig>, server: Arc<ServerConfig>) -> bool {
    let mut kind = (None, false);
    for _ in 0..2 {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let connector = TlsConnector::from(client.clone());
        let acceptor = TlsAcceptor::from(server.clone());
        let connected = async {
            let name = ServerName::try_from("mesh").unwrap();
            let mut stream = connector.connect(name, near).await.unwrap();
            // Tickets come with the first data.
            stream.read_u8().await.unwrap();
            let (_, session) = stream.get_ref();
            (session.handshake_kind(), session.is_early_data_accepted())
        };
        let accepted = async {
            let mut stream = acceptor.accept(far).await.unwrap();
            stream.write_u8(1).await.unwrap();
            stream.shutdown().await.unwrap();
        };
        (kind, ()) = tokio::join!(connected, accepted);
    }
    use HandshakeKind::{Full, FullWithHelloRetryRequest};
    matches!(kind, (Some(Full | FullWithHelloRetryRequest), false))
}

#[tokio::test]
async fn a_second_handshake_is_a_full_one_whatever_the_other_side_wants() {
    let b = Ca::new().identity("b", |_| {});
    let (client, server) = willing(&b);
    let (client, server) = (Arc::new(client), Arc::new(server));
    let both = is_full(client.clone(), server.clone()).await;
    assert!(!both, "both willing, they resume, or else this test shows nothing");
    assert!(is_full(client, b.server_config()).await, "our server doesn't let it");
    assert!(is_full(b.client_config("b"), server).await, "our client doesn't try");
}

#[tokio::test]
async fn nothing_is_sent_or_taken_before_the_handshake_is_over() {
    let _ = aws_lc_rs::default_provider().install_default();
    let b = Ca::new().identity("b", |_| {});
    assert_eq!(b.server_config().max_early_data_size, 0);
    assert!(!b.client_config("b").enable_early_data);
}
