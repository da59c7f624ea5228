//! Whatever bytes a peer calls its certificate: it is judged, never a panic,
//! and never let in.

use super::*;

#[test]
fn a_certificate_of_any_bytes_is_refused() {
    let _ = aws_lc_rs::default_provider().install_default();
    let me = Ca::new().identity("a", |_| {});
    bolero::check!().with_iterations(2000).with_max_len(2048).for_each(|bytes: &[u8]| {
        assert!(judge(&me, bytes).is_err());
    });
}

#[test]
fn a_sound_certificate_with_a_byte_changed_is_no_other_partys() {
    let _ = aws_lc_rs::default_provider().install_default();
    let ca = Ca::new();
    let (me, peer) = (ca.identity("a", |_| {}), ca.identity("b", |_| {}));
    let sound = peer.current().certified.cert[0].to_vec();
    judge(&me, &sound).expect("it is sound as it is");
    // Places in it, what to put there, and how much of it is left.
    bolero::check!().with_iterations(1000).with_type::<(Vec<(u16, u8)>, u16)>().for_each(
        |(changes, length)| {
            let mut bytes = sound.clone();
            for (place, byte) in changes {
                let place = usize::from(*place) % bytes.len();
                bytes[place] = *byte;
            }
            if changes.is_empty() {
                bytes.truncate(usize::from(*length) % sound.len());
            }
            assert!(judge(&me, &bytes).is_err() || bytes == sound);
        },
    );
}

fn judge(me: &Identity, bytes: &[u8]) -> Result<(), rustls::Error> {
    let certificate = CertificateDer::from(bytes);
    // Read without a chain to trust, as for the log.
    let _ = peer_id(&certificate);
    let verifier = verify::PeerVerifier::named(me.clone(), "b");
    let name = ServerName::try_from("mesh").unwrap();
    let now = UnixTime::now();
    let intermediates = [certificate.clone()];
    let as_client = verifier.verify_client_cert(&certificate, &intermediates, now);
    verifier.verify_server_cert(&certificate, &intermediates, &name, &[], now)?;
    as_client.map(drop)
}
