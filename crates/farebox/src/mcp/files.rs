//! The directory that agents may put answers into, and nothing outside it.
//!
//! A name is walked part by part from the directory itself, and no part may be a link: there is no moment at which a name that
//! was checked can come to mean another place. A file appears under its name when it is whole, and replaces nothing unless that
//! was allowed.

use std::{
    fs::File,
    io::{self, ErrorKind},
    os::fd::OwnedFd,
    path::Path,
};

use anyhow::Context as _;
use rustix::{
    fs::{AtFlags, FileType, Gid, Mode, OFlags, fchmod, fchown, linkat, openat, renameat, statat, unlinkat},
    io::Errno,
};

use super::told::Trouble;

/// The longest name, and the longest part of one.
const NAME_BYTES_MAX: usize = 1_024;
const PART_BYTES_MAX: usize = 240;

/// The directory.
#[derive(Debug)]
pub(crate) struct Folder {
    root: OwnedFd,
    replaces: bool,
    group: Option<u32>,
}

/// A name in it that may be written.
#[derive(Debug)]
pub(super) struct Place {
    parent: OwnedFd,
    name: String,
    replaces: bool,
    group: Option<u32>,
}

/// A file that has no name of its own yet; it goes away unless it is finished.
#[derive(Debug)]
pub(super) struct Draft {
    place: Place,
    pub(super) file: tokio::fs::File,
    name: String,
    is_finished: bool,
}

impl Folder {
    /// Opens the directory. `group` may read what is put into it; without one, the owner alone.
    pub(crate) fn open(path: &Path, replaces: bool, group: Option<u32>) -> anyhow::Result<Self> {
        let directory = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, directory, Mode::empty())
            .with_context(|| format!("`{}` is no directory for files", path.display()))?;
        Ok(Self { root, replaces, group })
    }

    /// Finds the place that `name` means, if it is in here and free.
    pub(super) fn place(&self, name: &str) -> Result<Place, Trouble> {
        let refused = |what: &str| Trouble::new("save_to_refused", what);
        if name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
            return Err(refused("the name is too long or has control characters"));
        }
        let parts: Vec<&str> = name.split('/').collect();
        // Names that begin with a dot are read by other programs as their settings, and those of drafts begin so.
        if parts.iter().any(|part| part.is_empty() || part.starts_with('.') || part.len() > PART_BYTES_MAX) {
            return Err(refused(
                "write a relative path, like `weather/today.json`, without `..` or hidden files",
            ));
        }
        let (file, directories) = parts.split_last().ok_or_else(|| refused("there is no name"))?;
        let step = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let unreachable = |_| refused("there is no such directory, or a link is in the way");
        let mut parent = self.root.try_clone().map_err(|_| refused("too many files are open"))?;
        for directory in directories {
            parent = openat(&parent, *directory, step, Mode::empty()).map_err(unreachable)?;
        }
        match statat(&parent, *file, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => {}
            Ok(old) if self.replaces && FileType::from_raw_mode(old.st_mode).is_file() => {}
            Ok(_) => return Err(exists()),
            Err(_) => return Err(refused("the name can't be used")),
        }
        Ok(Place { parent, name: (*file).to_owned(), replaces: self.replaces, group: self.group })
    }
}

/// Something has this name.
pub(super) fn exists() -> Trouble {
    Trouble::new("file_exists", "something has this name already; choose another one")
}

impl Place {
    /// Begins a file for this place, which only its owner can read.
    pub(super) fn begin(self) -> io::Result<Draft> {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!(".farebox-{}", hex::encode(random));
        let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = openat(&self.parent, &name, new, Mode::RUSR | Mode::WUSR)?;
        let file = tokio::fs::File::from_std(File::from(file));
        Ok(Draft { place: self, file, name, is_finished: false })
    }
}

impl Draft {
    /// Gives the file its name, once everything is on the disk.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        self.file.sync_all().await?;
        let Place { parent, name, replaces, group } = &self.place;
        if let Some(group) = group {
            fchown(&self.file, None, Some(Gid::from_raw(*group)))?;
            fchmod(&self.file, Mode::RUSR | Mode::WUSR | Mode::RGRP)?;
        }
        if *replaces {
            renameat(parent, &self.name, parent, name)?;
            self.is_finished = true;
        } else {
            // Unlike a rename, this fails where something has the name by now. The first name goes as the draft does.
            match linkat(parent, &self.name, parent, name, AtFlags::empty()) {
                Err(Errno::EXIST) => return Err(ErrorKind::AlreadyExists.into()),
                linked => linked?,
            }
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.is_finished {
            _ = unlinkat(&self.place.parent, &self.name, AtFlags::empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use tokio::io::AsyncWriteExt as _;

    use super::*;

    async fn put(folder: &Folder, name: &str) -> Result<(), Trouble> {
        let mut draft = folder.place(name)?.begin().unwrap();
        draft.file.write_all(b"new").await.unwrap();
        draft.finish().await.map_err(|_| exists())
    }

    fn names(of: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(of)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_new_file_is_its_owners_alone_and_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("below")).unwrap();
        let folder = Folder::open(dir.path(), false, None).unwrap();
        put(&folder, "below/a").await.unwrap();
        let mode = std::fs::metadata(dir.path().join("below/a")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(put(&folder, "below/a").await.unwrap_err().code(), "file_exists");
        assert_eq!(names(&dir.path().join("below")), ["a"], "no draft is left behind");

        // Two that began before either was finished: the second one finds the name taken.
        let (first, second) =
            (folder.place("b").unwrap().begin().unwrap(), folder.place("b").unwrap().begin().unwrap());
        first.finish().await.unwrap();
        assert_eq!(second.finish().await.unwrap_err().kind(), ErrorKind::AlreadyExists);

        let folder = Folder::open(dir.path(), true, None).unwrap();
        put(&folder, "below/a").await.unwrap();
        drop(folder.place("c").unwrap().begin().unwrap());
        assert_eq!(names(dir.path()), ["b", "below"], "what is broken off is gone");
    }

    #[tokio::test]
    async fn nothing_leads_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let (inside, outside) = (dir.path().join("in"), dir.path().join("out"));
        std::fs::create_dir_all(inside.join("below")).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "old").unwrap();
        symlink(&outside, inside.join("link")).unwrap();
        symlink(outside.join("file"), inside.join("file")).unwrap();
        symlink(outside.join("none"), inside.join("dangling")).unwrap();
        symlink("below", inside.join("harmless")).unwrap();
        for replaces in [false, true] {
            let folder = Folder::open(&inside, replaces, None).unwrap();
            for name in [
                "",
                ".",
                "..",
                "../out/new",
                "below/../../out/new",
                "/etc/farebox-test",
                "below//new",
                "below/",
                "./new",
                "link/new",
                "file",
                "dangling",
                "harmless/new",
                "below/none/new",
                ".envrc",
                "below/.git/config",
                "a\0b",
                "a\nb",
                &"a".repeat(241),
                &"a/".repeat(600),
            ] {
                assert!(put(&folder, name).await.is_err(), "{name:?}");
            }
        }
        assert_eq!(names(&outside), ["file"]);
        assert_eq!(std::fs::read(outside.join("file")).unwrap(), b"old");
        assert_eq!(names(&inside), ["below", "dangling", "file", "harmless", "link"]);
    }
}
