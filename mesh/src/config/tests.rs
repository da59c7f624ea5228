use super::*;

fn load(toml: &str, env: &[(&str, &str)], flags: &[(&str, String)]) -> Result<Config, Error> {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("omni.toml");
    std::fs::write(&file, toml).unwrap();
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Config::from_sources(Some(&file), env, flags)
}

#[test]
fn flags_win_over_environment_over_file_over_defaults() {
    let config = load(
        "registry = \"static:\"\nidentity = \"file:\"\nevents = \"file:\"",
        &[("OMNI_IDENTITY", "env:"), ("OMNI_EVENTS", "env:")],
        &[("events", "flag:".to_owned())],
    )
    .unwrap();
    assert_eq!(config.database_url(), "sqlite:");
    assert_eq!(config.registry, "static:");
    assert_eq!(config.identity, "env:");
    assert_eq!(config.events, "flag:");
}

#[test]
fn what_services_declare_is_a_default() {
    let declared = "[services.a]\nport = 7000\nadmin_port = 8000";
    let read = |flags: &[_]| Config::read(declared, None, HashMap::new(), flags).unwrap();
    let config = read(&[]);
    assert_eq!((config.port("a"), config.admin_port("a")), (Some(7000), 8000));
    assert_eq!(config.port("b"), None);
    let effective = config.effective();
    let port = effective.iter().find(|setting| setting.key == "services.a.port").unwrap();
    assert_eq!((port.value.as_str(), port.origin.as_str()), ("7000", "default"));
    assert_eq!(read(&[("services.a.port", "7001".to_owned())]).port("a"), Some(7001));
}

#[test]
fn origins_are_told_and_secrets_masked() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "hunter2\n").unwrap();
    let path = secret.path().to_str().unwrap();
    let config = load(
        "[hooks.sources.demo]\nscheme = \"github\"\nsecret = \"x\"",
        &[("OMNI_CONSUL__TOKEN_FILE", path), ("OMNI_KAFKA__PASSWORD", "hunter2:")],
        &[],
    )
    .unwrap();
    assert_eq!(config.consul.token.as_ref().unwrap().expose_secret(), "hunter2");
    let effective = config.effective();
    let find = |key: &str| effective.iter().find(|e| e.key == key).unwrap();
    assert_eq!(find("consul.token").value, "********");
    assert_eq!(find("consul.token").origin, "environment");
    assert_eq!(find("kafka.password").value, "********", "whatever it ends with");
    assert_eq!(find("hooks.sources.demo.secret").value, "********");
    assert_eq!(find("hooks.sources.demo.scheme").value, "github");
    assert_eq!(find("database").value, "sqlite:");
    assert_eq!(find("registry").origin, "default");
}

#[test]
fn the_environments_words_are_kept_to_the_letter() {
    let env = [
        ("OMNI_CONSUL__TOKEN", "007"),
        ("OMNI_TELEMETRY__SAMPLE", "0.5"),
        ("OMNI_SERVICES__GATEWAY__PORT", "8080"),
    ];
    let config = load("", &env, &[]).unwrap();
    assert_eq!(config.consul.token.as_ref().unwrap().expose_secret(), "007");
    assert!((config.telemetry.sample - 0.5).abs() < f64::EPSILON);
    assert_eq!(config.port("gateway"), Some(8080));
}

#[test]
fn an_unknown_key_is_refused_by_name() {
    let config = load("regisrty = \"static:\"", &[], &[]).unwrap();
    let error = config.check_keys(&["hooks"]).unwrap_err().to_string();
    assert!(error.contains("regisrty"), "{error}");
    load("[hooks]\nx = 1", &[], &[]).unwrap().check_keys(&["hooks"]).unwrap();
    let error = load("[log]\nformt = \"json\"", &[], &[]).unwrap_err().to_string();
    assert!(error.contains("formt"), "{error}");
}

#[test]
fn a_limit_that_lets_nothing_through_is_refused_by_name() {
    for (toml, key) in [
        ("[limits]\nin_flight = 0", "limits.in_flight"),
        ("[limits]\nidle_timeout = \"0s\"", "limits.idle_timeout"),
    ] {
        let error = load(toml, &[], &[]).unwrap_err().to_string();
        assert!(error.contains(key), "{error}");
    }
}

#[test]
fn a_value_of_the_wrong_kind_names_its_key() {
    let error = load("[log]\nformat = \"xml\"", &[], &[]).unwrap_err().to_string();
    assert!(error.contains("log.format") && error.contains("xml"), "{error}");
}

#[test]
fn a_section_is_read_by_its_owner() {
    #[derive(Default, Deserialize)]
    struct Hooks {
        sources: BTreeMap<String, BTreeMap<String, String>>,
    }
    let config = load(
        "[hooks.sources.demo]\nscheme = \"github\"",
        &[
            ("OMNI_HOOKS__SOURCES__DEMO__SECRET", "s"),
            ("OMNI_HOOKS__SOURCES__MY_OWN__SCHEME", "api-key"),
        ],
        &[],
    )
    .unwrap();
    let hooks: Hooks = config.section("hooks").unwrap();
    assert_eq!(hooks.sources["demo"]["scheme"], "github");
    assert_eq!(hooks.sources["demo"]["secret"], "s");
    assert_eq!(hooks.sources["my-own"]["scheme"], "api-key");
    assert!(config.section::<Hooks>("nothing").unwrap().sources.is_empty());
}
