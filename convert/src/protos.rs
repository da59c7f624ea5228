//! Where the descriptors of versions come from.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use prost_reflect::DescriptorPool;

/// Why descriptors can't be had.
#[derive(Debug, thiserror::Error)]
#[error("no descriptors from {}: {why}", path.display())]
pub struct InvalidProtos {
    path: PathBuf,
    why: String,
}

/// The descriptors of several packages, from folders of `.proto` files, single ones,
/// and encoded descriptor sets. Each has a pool of its own: two versions may be in
/// files of the same name.
#[derive(Clone, Debug, Default)]
pub struct Protos {
    pools: Vec<DescriptorPool>,
}

impl Protos {
    /// Reads what is at `paths`.
    ///
    /// # Errors
    /// When one isn't there, can't be read, or doesn't compile.
    pub fn load(paths: &[PathBuf]) -> Result<Self, InvalidProtos> {
        let pools = paths.iter().map(|path| {
            pool(path).map_err(|why| InvalidProtos { path: path.clone(), why: why.to_string() })
        });
        Ok(Self { pools: pools.collect::<Result<_, _>>()? })
    }

    /// These, and the descriptors in `pool`.
    #[must_use]
    pub fn and(mut self, pool: DescriptorPool) -> Self {
        self.pools.push(pool);
        self
    }

    /// The descriptors that have `package`, if any have.
    pub fn of(&self, package: &str) -> Option<&DescriptorPool> {
        let has = |pool: &&DescriptorPool| pool.files().any(|file| file.package_name() == package);
        self.pools.iter().find(has)
    }
}

type Failed = Box<dyn std::error::Error>;

fn pool(root: &Path) -> Result<DescriptorPool, Failed> {
    if !root.try_exists()? {
        return Err(io::Error::from(io::ErrorKind::NotFound).into());
    }
    if root.is_file() && root.extension().is_none_or(|extension| extension != "proto") {
        return Ok(DescriptorPool::decode(&*fs::read(root)?)?);
    }
    let (folder, mut files) = match root.is_dir() {
        true => (root, Vec::new()),
        false => (root.parent().unwrap_or(Path::new(".")), vec![root.to_owned()]),
    };
    if files.is_empty() {
        collect(folder, &mut files)?;
        files.sort();
    }
    let mut compiler = protox::Compiler::new([folder])?;
    compiler.include_imports(true).open_files(&files)?;
    Ok(compiler.descriptor_pool())
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let path = entry.path();
        // Links to folders aren't followed: they may lead around.
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
