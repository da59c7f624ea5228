//! Consul's ACLs, denying by default, with a token for each party.

use std::time::{Duration, Instant};

use api::hooks::v1::{ListSessionsRequest, hook_receiver_client::HookReceiverClient};
use serde_json::json;
use tests::{
    agent::ConsulAgent,
    fleet::{Fleet, SERVICE},
    ground::{Consul, Ground},
    load::Load,
    turn::Turn,
    until,
};
use tonic::Code;

use super::{LOW_RATE, consul::registered};

/// What a party needs, as docs/operating.md says: `calls` are those it calls.
fn rules(name: &str, calls: &[&str]) -> String {
    let own = format!("service \"{name}\" {{ policy = \"write\" }}\n");
    let called = calls.iter().map(|name| format!("service \"{name}\" {{ policy = \"read\" }}\n"));
    let shared = "node_prefix \"\" { policy = \"read\" }\n\
                  key \"omnibridge/routes\" { policy = \"read\" }\n\
                  key \"omnibridge/trust\" { policy = \"read\" }\n\
                  key_prefix \"omnibridge/versions/\" { policy = \"read\" }\n";
    own + &called.collect::<String>() + shared
}

pub async fn where_acls_deny_by_default_each_party_needs_its_own_policy_and_no_more(
    ground: Ground,
) {
    let turn = Turn::beside_others().await;
    let agent = ConsulAgent::start_with_acls().await;
    let receiver = agent.token(SERVICE, &rules(SERVICE, &[])).await;
    let operator = agent.token("operator", &rules("operator", &[SERVICE])).await;
    let token = [("OMNI_CONSUL__TOKEN", receiver.as_str())];
    let mut fleet = Fleet::empty(turn, Some(Consul::Real(Box::new(agent))), &token).await;
    fleet.add().await;
    fleet.add().await;
    registered(&fleet, 2).await;

    let as_operator = fleet.config_with(&[("consul.token", operator)]);
    let channel = fleet.channel_with(&as_operator).await;
    let load = Load::start(&channel, LOW_RATE);
    load.run(Duration::from_secs(1)).await;
    fleet.roll().await;
    // Consul says then that nobody is there, or that nothing may be asked.
    let lost = Instant::now();
    let Some(Consul::Real(agent)) = &fleet.consul else { unreachable!("it was given one") };
    agent.take_rules("operator").await;
    load.run(Duration::from_secs(2)).await;
    let report = load.stop().await;
    report.print(&format!("{ground:?}: with ACLs, rolled, and the client's token revoked"), lost);
    report.assert_none_failed();

    // The service's token shows it the intentions for calls to it.
    let Some(Consul::Real(agent)) = &fleet.consul else { unreachable!("it was given one") };
    let deny = json!({
        "Kind": "service-intentions", "Name": SERVICE,
        "Sources": [{ "Name": "operator", "Action": "deny" }],
    });
    agent.request("PUT", "config", &deny.to_string()).await.unwrap();
    until("the intention counts", || {
        let mut client = HookReceiverClient::new(channel.clone());
        async move {
            match client.list_sessions(ListSessionsRequest::default()).await {
                Err(why) if why.code() == Code::PermissionDenied => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;

    // A service's token gives no other name: not one that the agent has no leaf
    // for yet. (One that it has, it gives to whoever asks.)
    let authority = mesh::identity::authority(&fleet.config()).unwrap();
    let refused = authority.identity("audit").await.unwrap_err().to_string();
    assert!(refused.contains("consul.token"), "{refused}");
    fleet.stop().await;
}
