//! Which version gets a call, by rules and by what people ask.

use super::*;

pub async fn what_nobody_converts_is_left_to_those_who_speak_it(ground: Ground) {
    let market = Market::open(ground, &["1.0.0", "2.0.0"], true).await;
    let mut old = OldClient::new(market.channel().await);
    market.rule("[[rules]]\nto = [{ version = '^2' }]\nfallback = ['^1']").await;
    until("the rule counts", || {
        let mut old = old.clone();
        async move {
            let answers = old.follow(receipt("")).await.unwrap().into_inner();
            match all(answers).await.remove(0).order_id {
                converted if converted == "2.0.0" => Ok(()),
                other => Err(other),
            }
        }
    })
    .await;
    // It is of the old version only, and was said no to by that one.
    let haggled = old.haggle(old_order("a")).await.unwrap_err();
    assert_eq!((haggled.code(), haggled.message()), (Code::Unimplemented, "not today"));
    market.fleet.stop().await;
}

pub async fn a_canary_gets_its_share_and_rules_change_under_load(ground: Ground) {
    const CALLS: usize = 10_000;
    let market = Market::open(ground, &["1.0.0", "1.1.0"], false).await;
    let channel = market.channel().await;
    // Which version answers.
    let version = async || {
        let answers = OldClient::new(channel.clone()).follow(receipt("")).await.unwrap();
        all(answers.into_inner()).await.remove(0).order_id
    };
    let canaries = async |calls| {
        let mut canaries = 0;
        for _ in 0..calls {
            canaries += usize::from(version().await == "1.1.0");
        }
        canaries
    };
    market
        .rule(
            "[[rules]]\nto = [{ version = '=1.0.0', weight = 95 }, \
             { version = '=1.1.0', weight = 5 }]",
        )
        .await;
    until("the rule counts", || async {
        let canaries = canaries(100).await;
        if canaries < 20 { Ok(()) } else { Err(canaries) }
    })
    .await;
    let canary = canaries(CALLS).await;
    assert!((CALLS * 4 / 100..=CALLS * 6 / 100).contains(&canary), "{canary} of {CALLS}");

    // Every call that fails ends the load with a panic.
    let load = tokio::spawn({
        let channel = channel.clone();
        async move {
            let mut calls = 0;
            let begun = std::time::Instant::now();
            while begun.elapsed() < Duration::from_secs(6) {
                OldClient::new(channel.clone()).buy(old_order("a")).await.unwrap();
                calls += 1;
            }
            calls
        }
    });
    for (share, rules) in [
        ("=1.1.0", "[[rules]]\nto = [{ version = '=1.1.0' }]"),
        ("=1.0.0", "[[rules]]\ncallers = ['operator']\nto = [{ version = '=1.0.0' }]"),
        ("=1.1.0", "[[rules]]\nto = [{ version = '^3' }]\nfallback = ['=1.1.0']"),
    ] {
        market.rule(rules).await;
        let other = if share == "=1.1.0" { "=1.0.0" } else { "=1.1.0" };
        // Within what the rules choose, nothing is left for the other.
        until("the rule counts", || async {
            let range: VersionReq = other.parse().unwrap();
            let mut client = OldClient::new(channel.clone().of_version(range));
            match client.list(receipt("")).await {
                Err(refused) if reason(&refused) == Reason::VersionUnavailable => Ok(()),
                answered => Err(answered.is_ok()),
            }
        })
        .await;
    }
    assert!(load.await.expect("no call fails") > 100);
    market.fleet.stop().await;
}

pub async fn people_see_versions_and_set_rules(ground: Ground) {
    let market = Market::open(ground, &["1.0.0", "2.0.0"], false).await;
    let versions = market.omni(&["versions", "--json"]);
    let versions: serde_json::Value = serde_json::from_str(&versions).unwrap();
    let told = |nth: usize| {
        let one = &versions[nth];
        (one["service"].as_str(), one["version"].as_str(), one["packages"][0].as_str())
    };
    assert_eq!(told(0), (Some("shop"), Some("2.0.0"), Some("shop.v2")));
    assert_eq!(told(1), (Some("shop"), Some("1.0.0"), Some("shop.v1")));

    let file = market.fleet.config().data.join("rules.toml");
    let path = file.display().to_string();
    let rules = "# the canary\n[[rules]]\nto = [{ version = '^2' }]\nfallback = ['^9']\n";
    std::fs::write(&file, rules).unwrap();
    let (checked, warned) = market.omni_warns(&["routes", "check", "shop", &path]);
    assert!(checked.contains("2.0.0") && warned.contains("no instance of shop is in ^9"));
    let (set, warned) = market.omni_warns(&["routes", "set", "shop", &path, "--as", "ann"]);
    assert!(set.contains("revision 1 counts") && warned.contains("no instance of shop is in ^9"));
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);

    std::fs::write(&file, "[[rules]]\nto = []\n").unwrap();
    let mut refused = market.fleet.command(&process::binary());
    let refused = refused.args(["routes", "set", "shop", &path]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("weight"));
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);

    std::fs::write(&file, "").unwrap();
    market.omni(&["routes", "set", "shop", &path]);
    assert!(market.omni(&["routes", "get", "shop"]).contains("has no rules"));
    let back = market.omni(&["routes", "rollback", "shop", "--to", "1"]);
    assert!(back.contains("revision 3 counts"), "{back}");
    assert_eq!(market.omni(&["routes", "get", "shop"]), rules);
    let history = market.omni(&["routes", "history", "shop", "--json"]);
    let history: serde_json::Value = serde_json::from_str(&history).unwrap();
    let by: Vec<_> = history["revisions"].as_array().unwrap().iter().map(|r| &r["by"]).collect();
    assert_eq!(by, ["operator-ann", "operator", "operator"]);
    assert!(market.omni(&["routes", "get"]).contains("shop"));
    market.fleet.stop().await;
}

/// By reflection of the bridge, which tells of both versions.
pub async fn people_call_a_version_that_nobody_speaks(ground: Ground) {
    let market = Market::open(ground, &["2.0.0"], true).await;
    let order = r#"{"id": "a", "customer": "Ada", "price": 12.5, "status": "STATUS_OPEN"}"#;
    let bought = market.omni(&["call", "--json", "shop.v1.Shop/Buy", order]);
    assert_eq!(bought.trim(), r#"{"orderId":"a"}"#);
    let listed = market.omni(&["call", "--json", "shop.v2.Shop/List", "{}"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["priceCents"], &listed["state"]), (&"1250".into(), &"STATE_OPEN".into()));
    let listed = market.omni(&["call", "--json", "shop.v1.Shop/List", "{}"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!((&listed["price"], &listed["customer"]), (&12.5.into(), &"Ada".into()));

    let by_name = ["call", "--json", "--service", "shop", "shop.v1.Shop/Buy", order];
    assert_eq!(market.omni(&by_name).trim(), r#"{"orderId":"a"}"#);
    for (method, why) in [("shop.v1.Shop/Haggle", "there are 2.0.0"), ("till.v1.Till/Open", "till")]
    {
        let mut refused = market.fleet.command(&process::binary());
        let refused = refused.args(["call", method, "{}"]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success() && said.contains(why), "{said}");
    }

    // The tool itself, where it is installed: with the real backends.
    if let (Ground::RealConsul, Some((_, bridge))) = (ground, &market.bridge) {
        let agent = market.fleet.consul.as_ref().unwrap().address();
        let leaf = format!("http://{agent}/v1/agent/connect/ca/leaf/operator");
        let http = reqwest::Client::builder().tls_certs_only([]).build().unwrap();
        let leaf = http.get(leaf).send().await.unwrap().text().await.unwrap();
        let leaf: serde_json::Value = serde_json::from_str(&leaf).unwrap();
        let folder = market.fleet.config().data;
        for (file, part) in [("cert.pem", "CertPEM"), ("key.pem", "PrivateKeyPEM")] {
            std::fs::write(folder.join(file), leaf[part].as_str().unwrap()).unwrap();
        }
        let tools = PathBuf::from(std::env::var_os("OMNI_TEST_BIN_DIR").unwrap());
        let mut grpcurl = Command::new(tools.join("grpcurl"));
        let grpcurl = grpcurl.current_dir(&folder).args(["-insecure", "-d", order]);
        let grpcurl = grpcurl.args(["-cert", "cert.pem", "-key", "key.pem"]);
        let output = grpcurl.args([&bridge.to_string(), "shop.v1.Shop/Buy"]).output().unwrap();
        let said =
            String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("orderId"), "{said}");
        // An answer that is nothing but a status.
        let refused = [&bridge.to_string(), "shop.v1.Shop/Buy"];
        let mut grpcurl = Command::new(tools.join("grpcurl"));
        let grpcurl = grpcurl.current_dir(&folder).args(["-insecure", "-d", "{}"]);
        let grpcurl = grpcurl.args(["-cert", "cert.pem", "-key", "key.pem"]);
        let output = grpcurl.args(refused).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("Code: InvalidArgument"), "{said}");
    }
    market.fleet.stop().await;
}

pub async fn the_page_shows_what_a_reader_sees(ground: Ground) {
    let mut market = Market::open(ground, &["2.0.0"], true).await;
    for block in page::blocks("versions.md") {
        if block.has("shop 1.0.0 &") {
            market.shops.push(market.fleet.shop("shop", "1.0.0").await);
        }
        let folder = process::binary().parent().unwrap().display().to_string();
        block.follow(|script| {
            let mut shell = market.fleet.command(Path::new("bash"));
            let path = std::env::var("PATH").unwrap();
            shell.env("PATH", format!("{folder}:{path}")).args(["-c", script]);
            shell
        });
    }
    market.fleet.stop().await;
}
