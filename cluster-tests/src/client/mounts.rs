//! Releases what a container runtime left mounted, so that its folder can be removed.

use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

/// Unmounts everything below `folder`, the deepest first.
///
/// Never fails: what cannot be unmounted keeps a temporary folder from being removed, no more.
pub(super) fn release(folder: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for mount in below(&table, folder).into_iter().rev() {
        let _ = unmount(mount, UnmountFlags::DETACH);
    }
}

/// Returns the mount points below `folder` in the order in which they were mounted.
fn below<'a>(table: &'a str, folder: &Path) -> Vec<&'a Path> {
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(Path::new);
    points.filter(|point| point.starts_with(folder)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_folder_are_found() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:5 / /tmp/a/b rw - tmpfs t rw\n3 1 0:5 / /tmp/ab rw - tmpfs t rw\n";
        assert_eq!(below(table, Path::new("/tmp/a")), [Path::new("/tmp/a/b")]);
    }
}
