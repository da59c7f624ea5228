//! The command line as a user meets it, without a mesh.

#![allow(clippy::unwrap_used, reason = "a test that can't go on fails")]

use std::process::{Command, Output};

fn omni(args: &[&str]) -> Output {
    let data = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_omni"))
        .env_clear()
        .current_dir(data.path())
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[test]
fn help_shows_every_command_and_something_to_try() {
    let help = omni(&["--help"]);
    assert!(help.status.success());
    let help = text(&help.stdout).to_owned();
    for word in ["up", "serve", "services", "call", "hook", "events", "certs", "config", "Try it:"]
    {
        assert!(help.contains(word), "{word}\n{help}");
    }
}

#[test]
fn wrong_usage_exits_with_2_and_a_failure_with_1() {
    assert_eq!(omni(&["nonsense"]).status.code(), Some(2));
    let unknown = omni(&["serve", "nobody"]);
    assert_eq!(unknown.status.code(), Some(1));
    let said = text(&unknown.stderr);
    assert!(
        said.contains("there is no service `nobody`; there are audit, gateway, hook-receiver"),
        "{said}"
    );
}

#[test]
fn an_operators_certificate_is_written_for_its_owner_only() {
    use std::os::unix::fs::PermissionsExt as _;
    let out = tempfile::tempdir().unwrap();
    let folder = out.path().join("ann");
    let issued = omni(&["certs", "issue", "ann", "--out", folder.to_str().unwrap()]);
    assert!(issued.status.success(), "{}", text(&issued.stderr));
    for file in ["cert.pem", "key.pem", "roots.pem"] {
        let mode = folder.join(file).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{file}");
    }
}

#[test]
fn the_configuration_says_where_each_value_came_from_and_no_secret() {
    let shown = Command::new(env!("CARGO_BIN_EXE_omni"))
        .env_clear()
        .env("OMNI_DATABASE", "postgres://omni:hunter2@127.0.0.1/omni")
        .args(["config", "show", "--json", "--data", "elsewhere"])
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    let setting =
        |key: &str| shown.as_array().unwrap().iter().find(|s| s["key"] == key).unwrap().clone();
    assert_eq!(setting("database")["value"], "********");
    assert_eq!(setting("database")["origin"], "environment");
    assert_eq!(setting("data")["value"], "elsewhere");
    assert_eq!(setting("data")["origin"], "flag");
    assert_eq!(setting("registry")["origin"], "default");
    assert!(!shown.to_string().contains("hunter2"));
}

#[test]
fn an_unknown_setting_is_an_error_that_names_it() {
    let data = tempfile::tempdir().unwrap();
    std::fs::write(data.path().join("omni.toml"), "regisrty = \"static:\"").unwrap();
    let shown = Command::new(env!("CARGO_BIN_EXE_omni"))
        .env_clear()
        .current_dir(data.path())
        .args(["config", "show"])
        .output()
        .unwrap();
    assert_eq!(shown.status.code(), Some(1));
    assert!(text(&shown.stderr).contains("regisrty"), "{}", text(&shown.stderr));
}
