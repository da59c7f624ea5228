//! Calls and events of one version, answered and read in the other.

use super::*;

pub async fn callers_of_the_old_version_are_answered_by_the_new_one(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let channel = market.channel().await;
    let (mut old, mut new) = (OldClient::new(channel.clone()), NewClient::new(channel));

    assert_eq!(old.buy(old_order("a")).await.unwrap().into_inner(), receipt("a"));
    let more = stream::iter(["b", "c"].map(old_order));
    assert_eq!(old.buy_all(more).await.unwrap().into_inner(), receipt("b,c"));
    let sold = all(new.list(new_receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(sold, ["a", "b", "c"].map(new_order), "what the new version was told");
    let listed = all(old.list(receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(listed, ["a", "b", "c"].map(old_order), "what the old one is told of it");
    let traded = old.trade(stream::iter(["d", "e"].map(old_order))).await.unwrap();
    let sent = |id| v1::Order { status: v1::Status::Sent.into(), ..old_order(id) };
    assert_eq!(all(traded.into_inner()).await, ["d", "e"].map(sent));
    // The same in both: its bytes pass as they are.
    let followed = old.follow(receipt("a")).await.unwrap();
    assert_eq!(all(followed.into_inner()).await, [receipt("a")]);
    market.fleet.stop().await;
}

pub async fn callers_of_the_new_version_are_answered_by_the_old_one(ground: Ground) {
    let market = Market::open(ground, &["1.4.0"], true).await;
    let channel = market.channel().await;
    let (mut old, mut new) = (OldClient::new(channel.clone()), NewClient::new(channel));

    assert_eq!(new.purchase(new_order("a")).await.unwrap().into_inner(), new_receipt("a"));
    let more = stream::iter(["b", "c"].map(new_order));
    assert_eq!(new.buy_all(more).await.unwrap().into_inner(), new_receipt("b,c"));
    let sold = all(old.list(receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(sold, ["a", "b", "c"].map(old_order));
    let listed = all(new.list(new_receipt("")).await.unwrap().into_inner()).await;
    assert_eq!(listed, ["a", "b", "c"].map(new_order));
    let traded = new.trade(stream::iter(["d", "e"].map(new_order))).await.unwrap();
    let sent = |id| v2::PurchaseOrder { state: v2::State::Sent.into(), ..new_order(id) };
    assert_eq!(all(traded.into_inner()).await, ["d", "e"].map(sent));
    market.fleet.stop().await;
}

pub async fn events_of_either_version_reach_consumers_of_either(ground: Ground) {
    let mut market = Market::open(ground, &["1.0.0", "2.0.0"], false).await;
    let old_ledger = market.fleet.shop("ledger-old", "ledger-old").await;
    let new_ledger = market.fleet.shop("ledger-new", "ledger-new").await;
    let channel = market.channel().await;
    OldClient::new(channel.clone()).buy(old_order("a")).await.unwrap();
    NewClient::new(channel).purchase(new_order("b")).await.unwrap();
    let heard = |ledger: &Process, name: &str, id: &str| {
        let begin = format!("heard {name} {name} ");
        let lines = ledger.log();
        let mut orders = lines
            .lines()
            .filter_map(|line| line.strip_prefix(&begin))
            .map(|json| serde_json::from_str::<serde_json::Value>(json).unwrap());
        orders.find(|order| order["id"] == id)
    };
    for id in ["a", "b"] {
        until("the ledgers hear of it", || async {
            let old = heard(&old_ledger, "shop.v1.Order", id);
            let new = heard(&new_ledger, "shop.v2.PurchaseOrder", id);
            let (Some(old), Some(new)) = (old, new) else {
                return Err((old_ledger.log(), new_ledger.log()));
            };
            assert_eq!(old["customer"], "Ada");
            assert_eq!((&old["price"], &old["orderedAt"]), (&12.5.into(), &"1700000000".into()));
            assert_eq!(new["buyer"]["name"], "Ada");
            assert_eq!((&new["priceCents"], &new["state"]), (&"1250".into(), &"STATE_OPEN".into()));
            Ok(())
        })
        .await;
    }
    market.fleet.stop().await;
}

pub async fn what_goes_with_a_call_goes_through_its_conversion(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let mut old = OldClient::new(market.channel().await);
    let given_up = || market.shops[0].log().matches(GIVEN_UP).count();

    let mut request = Request::new(old_order("a"));
    request.metadata_mut().insert(ECHO, "hear me".parse().unwrap());
    let answer = old.buy(request).await.unwrap();
    assert_eq!(answer.metadata().get(ECHO).unwrap(), "hear me");

    let refused = old.buy(old_order("")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let details = refused.get_error_details();
    assert_eq!(details.bad_request().unwrap().field_violations[0].field, "id");

    let mut request = Request::new(old_order(SLOW));
    request.set_timeout(Duration::from_millis(300));
    let late = old.buy(request).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let gives_up = async |times| {
        until("the shop knows that nobody waits", || async {
            if given_up() == times { Ok(()) } else { Err(given_up()) }
        })
        .await;
    };
    gives_up(1).await;
    let mut listed = old.list(receipt(SLOW)).await.unwrap().into_inner();
    assert_eq!(listed.message().await.unwrap(), Some(old_order("a")));
    drop(listed);
    gives_up(2).await;

    // A caller is who it was, and the shop's own intentions decide on it.
    let stranger = OldClient::new(market.channel_as("stranger").await).buy(old_order("b")).await;
    let denied = stranger.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    assert!(denied.message().contains("/svc/stranger may not call"), "{}", denied.message());
    // A proxy's caller is decided on as well as the proxy, which the shop must trust.
    let operator = market.fleet.operator().await.id();
    let forwarded = async |proxy: &str, caller: &str| {
        let mut request = Request::new(old_order("b"));
        let caller = operator.as_str().replace("/svc/operator", &format!("/svc/{caller}"));
        request.metadata_mut().insert(CALLER_HEADER, caller.parse().unwrap());
        OldClient::new(market.channel_as(proxy).await).buy(request).await
    };
    let answer = forwarded(PROXY, "operator").await.unwrap();
    assert_eq!(answer.metadata().get(CALLER).unwrap(), "operator");
    let refusals =
        [(PROXY, "stranger", "/svc/stranger may not call"), ("gateway", "operator", "no trusted")];
    for (proxy, caller, why) in refusals {
        let denied = forwarded(proxy, caller).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied);
        assert!(denied.message().contains(why), "{}", denied.message());
    }
    market.fleet.stop().await;
}

pub async fn what_can_not_be_converted_is_refused_by_name(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let channel = market.channel().await;
    let mut old = OldClient::new(channel.clone());

    // Its mapping says nothing of an infinite price.
    let priceless = v1::Order { price: f64::INFINITY, ..old_order("a") };
    let refused = old.buy(priceless.clone()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("price_cents"), "{}", refused.message());
    let orders = stream::iter([old_order("b"), priceless, old_order("c")]);
    let refused = match old.trade(orders).await {
        // It came to the second one before the first was answered.
        Err(refused) => refused,
        Ok(traded) => {
            let mut traded = traded.into_inner();
            loop {
                match traded.message().await {
                    Ok(Some(order)) => assert_eq!(order.id, "b"),
                    Ok(None) => panic!("it is refused"),
                    Err(refused) => break refused,
                }
            }
        }
    };
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("price_cents"), "{}", refused.message());

    let haggled = old.haggle(old_order("a")).await.unwrap_err();
    assert_eq!(reason(&haggled), Reason::VersionUnavailable);
    assert_eq!(haggled.code(), Code::FailedPrecondition);
    let details = haggled.get_error_details();
    let told = &details.error_info().unwrap().metadata;
    assert!(told["asked"].contains("/shop.v1.Shop/Haggle"), "{told:?}");
    assert_eq!(told["there"], "2.0.0 (shop.v2)");
    let unknown = call(&channel, "/shop.v9.Shop/Buy").await.unwrap_err();
    assert_eq!(reason(&unknown), Reason::VersionUnavailable);
    market.fleet.stop().await;

    let market = Market::open(ground, &["2.0.0"], false).await;
    let refused = OldClient::new(market.channel().await).buy(old_order("a")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::VersionUnavailable);
    market.fleet.stop().await;
}

async fn call(channel: &Channel, path: &str) -> Result<HttpResponse<Body>, Status> {
    let request = HttpRequest::post(path).header("te", "trailers").body(Body::empty()).unwrap();
    let response = tower::ServiceExt::oneshot(channel.clone(), request).await?;
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(response),
    }
}
