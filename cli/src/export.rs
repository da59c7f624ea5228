//! `omni export`: what others have to know of the services, written by the list of them.

mod compose;
mod consul;
mod docs;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use mesh::service::{Descriptor, HTTP};

use crate::{
    args::{Export, Exported},
    catalogue,
    output::line,
};

/// The lines that a part of a file is between, each in a comment of the file's own kind.
const BEGIN: &str = "omni export: begin";
const END: &str = "omni export: end";

/// One file, and what is to be in it.
enum Wanted {
    /// All of it.
    Whole(PathBuf, String),
    /// What is between the lines with [`BEGIN`] and [`END`].
    Part(PathBuf, String),
}

/// A file that isn't as it should be, and what is to be in it.
struct Difference {
    path: PathBuf,
    text: String,
}

/// Writes the files, or says which of them differ.
pub(crate) fn run(args: &Export) -> anyhow::Result<()> {
    let differences = differences(&args.dir, &args.what)?;
    for Difference { path, text } in &differences {
        let shown = path.strip_prefix(&args.dir).unwrap_or(path).display();
        if args.check {
            line(&format!("{shown} differs"))?;
        } else {
            write(path, text).with_context(|| format!("{} isn't written", path.display()))?;
            line(&format!("wrote {shown}"))?;
        }
    }
    if args.check && !differences.is_empty() {
        bail!("`omni export` writes them anew");
    }
    if differences.is_empty() {
        line("all is as the services declare it")?;
    }
    Ok(())
}

/// What isn't in `folder` as it should be; `what` names the kinds, all where it is empty.
fn differences(folder: &Path, what: &[Exported]) -> anyhow::Result<Vec<Difference>> {
    let mut services = catalogue::descriptors();
    services.sort_by_key(|service| service.port);
    let all = [Exported::Compose, Exported::Consul, Exported::Docs, Exported::Prometheus];
    let mut wanted = Vec::new();
    for kind in if what.is_empty() { &all } else { what } {
        wanted.extend(match kind {
            Exported::Compose => compose::services(&services)?,
            Exported::Consul => consul::entries(&services)?,
            Exported::Docs => docs::tables(&services),
            Exported::Prometheus => compose::prometheus(&services)?,
        });
    }
    let mut differences = Vec::new();
    for wanted in wanted {
        match wanted {
            Wanted::Whole(path, text) => {
                let path = folder.join(path);
                if fs::read_to_string(&path).ok().as_ref() != Some(&text) {
                    differences.push(Difference { path, text });
                }
            }
            Wanted::Part(path, part) => {
                let path = folder.join(path);
                let now = fs::read_to_string(&path).with_context(|| {
                    format!("{} can't be read; run it in a checkout", path.display())
                })?;
                let text = with_part(&now, &part).with_context(|| {
                    format!("{} has no lines `{BEGIN}` and `{END}`", path.display())
                })?;
                if text != now {
                    differences.push(Difference { path, text });
                }
            }
        }
    }
    Ok(differences)
}

/// `text` with `part` between the two lines.
fn with_part(text: &str, part: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (begin, rest) = rest.split_once('\n')?;
    let end = rest.find(END)?;
    let end = rest[..end].rfind('\n').map_or(0, |at| at + 1);
    Some(format!("{before}{BEGIN}{begin}\n{part}{}", &rest[end..]))
}

fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, text)
}

/// The port that is published: the list's own test holds that each has one.
fn port(service: &Descriptor) -> anyhow::Result<u16> {
    service.port.with_context(|| format!("{} declares no port", service.name))
}

fn is_http(service: &Descriptor) -> bool {
    service.capabilities.contains(&HTTP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checkouts_files_are_as_the_services_declare() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let differences = differences(&root, &[]).unwrap();
        let paths: Vec<_> = differences.iter().map(|difference| &difference.path).collect();
        assert_eq!(paths, Vec::<&PathBuf>::new(), "`cargo run -- export` writes them anew");
    }

    #[test]
    fn what_is_missing_or_differs_is_told_and_mended() {
        let folder = tempfile::tempdir().unwrap();
        let args =
            |check| Export { what: vec![Exported::Consul], dir: folder.path().into(), check };
        run(&args(true)).unwrap_err();
        run(&args(false)).unwrap();
        run(&args(true)).unwrap();
        let (theirs, ours) = ("consul/intentions/theirs.json", "consul/intentions/audit.json");
        for file in [theirs, ours] {
            fs::write(folder.path().join(file), "{}").unwrap();
        }
        assert_eq!(differences(folder.path(), &[Exported::Consul]).unwrap().len(), 1);
        run(&args(false)).unwrap();
        run(&args(true)).unwrap();
        assert!(folder.path().join(theirs).exists(), "what isn't ours stays");
        let why = differences(folder.path(), &[Exported::Compose]).err().unwrap().to_string();
        assert!(why.contains("compose.yaml"), "{why}");
    }

    #[test]
    fn a_part_is_what_is_between_its_lines() {
        let text = "a\n  # omni export: begin\nold\nold\n  # omni export: end\nb\n";
        let expected = "a\n  # omni export: begin\nnew\n  # omni export: end\nb\n";
        assert_eq!(with_part(text, "new\n").unwrap(), expected);
        assert_eq!(with_part(expected, "new\n").unwrap(), expected);
        assert_eq!(with_part("a\n# omni export: begin\n", ""), None);
    }
}
