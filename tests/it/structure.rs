//! The shape of the code: no circles between files, no type name that stands for two things, short
//! lines, and doc comments that say something.
#![expect(clippy::unwrap_used, reason = "a failure fails the test and shows its place")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use syn::{
    Attribute, File, Item, ItemUse, Meta, UseTree, Visibility,
    visit::{self, Visit},
};

use crate::tidy::{read, sources};

/// Code, comments and the prose of documents wrap here.
const COLUMNS_MAX: usize = 100;
/// A doc comment with as few words as this repeats the name below it.
const WORDS_TOO_FEW: usize = 3;

/// One source file: its module, and what it takes from other modules.
struct Room {
    module: Vec<String>,
    uses: Uses,
}

/// The paths that a file names, and those that it only hands on (`pub use`).
#[derive(Default)]
struct Uses {
    named: Vec<Vec<String>>,
    /// By the name under which other files find it here.
    handed_on: HashMap<String, Vec<String>>,
    /// The types that are declared here.
    types: Vec<String>,
}

/// `src/worker/release.rs` is the module `worker::release`, and `src/worker/mod.rs` is `worker`.
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_start_matches("src/").trim_end_matches(".rs");
    let path = path.strip_suffix("/mod").unwrap_or(path);
    if path == "lib" { Vec::new() } else { path.split('/').map(str::to_owned).collect() }
}

/// Every file of the program, without the files of its unit tests.
fn rooms() -> BTreeMap<String, Room> {
    let files = sources("src").into_iter().filter(|(path, _)| !path.contains("/tests"));
    let parsed = files.map(|(path, text)| {
        let file = syn::parse_file(&text).unwrap_or_else(|error| panic!("{path}: {error}"));
        let module = module_of(&path);
        let uses = Uses::of(&file, &module);
        (path, Room { module, uses })
    });
    parsed.collect()
}

impl Uses {
    fn of(file: &File, module: &[String]) -> Self {
        let mut reader = Reader { module, uses: Self::default() };
        reader.visit_file(file);
        reader.uses
    }
}

struct Reader<'m> {
    module: &'m [String],
    uses: Uses,
}

impl Reader<'_> {
    /// The path from the crate's root, for paths that begin with `crate`, `self` or `super`.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let mut module = self.module.to_vec();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => module.clear(),
            "self" => {}
            "super" => {
                while let [first, tail @ ..] = rest
                    && first == "super"
                {
                    module.pop();
                    rest = tail;
                }
                module.extend_from_slice(rest);
                return Some(module);
            }
            _ => return None,
        }
        module.extend_from_slice(&rest[1..]);
        Some(module)
    }

    fn tree(&mut self, tree: &UseTree, before: &mut Vec<String>, is_public: bool) {
        match tree {
            UseTree::Path(path) => {
                before.push(path.ident.to_string());
                self.tree(&path.tree, before, is_public);
                before.pop();
            }
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, before, is_public);
                }
            }
            UseTree::Name(name) => {
                self.used(before, &name.ident.to_string(), &name.ident.to_string(), is_public);
            }
            UseTree::Rename(rename) => {
                let (name, known_as) = (rename.ident.to_string(), rename.rename.to_string());
                self.used(before, &name, &known_as, is_public);
            }
            UseTree::Glob(_) => self.used(before, "*", "*", is_public),
        }
    }

    fn used(&mut self, before: &[String], name: &str, known_as: &str, is_public: bool) {
        let mut path = before.to_vec();
        let known_as = if name == "self" {
            before.last().cloned().unwrap_or_default()
        } else {
            known_as.to_owned()
        };
        if !matches!(name, "self" | "*") {
            path.push(name.to_owned());
        }
        let Some(path) = self.absolute(&path) else { return };
        if is_public {
            self.uses.handed_on.insert(known_as, path);
        } else {
            self.uses.named.push(path);
        }
    }
}

/// Whether an item is compiled for tests only.
fn is_test(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| match &attribute.meta {
        Meta::List(list) => list.path.is_ident("cfg") && list.tokens.to_string() == "test",
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Reader<'_> {
    fn visit_item(&mut self, item: &'ast Item) {
        let (attributes, name) = match item {
            Item::Mod(item) => (&item.attrs, None),
            Item::Use(item) => (&item.attrs, None),
            Item::Fn(item) => (&item.attrs, None),
            Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            Item::Type(item) => (&item.attrs, Some(&item.ident)),
            _ => return visit::visit_item(self, item),
        };
        if !is_test(attributes) {
            self.uses.types.extend(name.map(ToString::to_string));
            visit::visit_item(self, item);
        }
    }

    /// `pub(super)` and `pub(in crate::…)` limit who sees an item. They take nothing from there.
    fn visit_visibility(&mut self, _visibility: &'ast Visibility) {}

    fn visit_item_use(&mut self, item: &'ast ItemUse) {
        let is_public = !matches!(item.vis, Visibility::Inherited);
        self.tree(&item.tree, &mut Vec::new(), is_public);
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let segments: Vec<String> = path.segments.iter().map(|s| s.ident.to_string()).collect();
        if let Some(path) = self.absolute(&segments) {
            self.uses.named.push(path);
        }
        visit::visit_path(self, path);
    }
}

/// The file in which a path's item stands, through any number of files that only hand it on.
fn home<'r>(rooms: &'r BTreeMap<String, Room>, path: &[String]) -> Option<&'r str> {
    let by_module: HashMap<&[String], &str> =
        rooms.iter().map(|(file, room)| (room.module.as_slice(), file.as_str())).collect();
    let mut path = path.to_vec();
    for _ in 0..8 {
        let depth = (0..=path.len()).rev().find(|depth| by_module.contains_key(&path[..*depth]))?;
        let file = by_module[&path[..depth]];
        let Some(next) = path.get(depth) else { return Some(file) };
        match rooms[file].uses.handed_on.get(next) {
            Some(elsewhere) => {
                let rest = path.split_off(depth + 1);
                path = elsewhere.iter().cloned().chain(rest).collect();
            }
            None => return Some(file),
        }
    }
    None
}

fn arrows(rooms: &BTreeMap<String, Room>) -> BTreeMap<&str, BTreeSet<&str>> {
    let from = rooms.iter().map(|(file, room)| {
        let homes = room.uses.named.iter().filter_map(|path| home(rooms, path));
        (file.as_str(), homes.filter(|home| home != file).collect())
    });
    from.collect()
}

/// Every file that can be reached from a file along the arrows.
fn reachable<'a>(
    arrows: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    from: &'a str,
) -> BTreeSet<&'a str> {
    let (mut found, mut open) = (BTreeSet::new(), vec![from]);
    while let Some(file) = open.pop() {
        open.extend(arrows.get(file).into_iter().flatten().filter(|next| found.insert(**next)));
    }
    found
}

#[test]
fn no_file_depends_on_itself_through_others() {
    let rooms = rooms();
    let arrows = arrows(&rooms);
    let count: usize = arrows.values().map(BTreeSet::len).sum();
    assert!(count > 200, "only {count} arrows were found between {} files", rooms.len());
    let circles: Vec<&str> =
        arrows.keys().copied().filter(|file| reachable(&arrows, file).contains(file)).collect();
    println!("{} files, {count} arrows, {} in circles", rooms.len(), circles.len());
    assert!(circles.is_empty(), "files that depend on themselves: {circles:#?}");
}

#[test]
fn a_type_name_stands_for_one_thing() {
    let mut homes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let rooms = rooms();
    for (file, room) in &rooms {
        for name in &room.uses.types {
            homes.entry(name).or_default().push(file);
        }
    }
    homes.retain(|_, files| files.len() > 1);
    assert!(homes.is_empty(), "type names that stand twice: {homes:#?}");
}

/// Lines that can't be wrapped: a URL, or a literal of raw data.
fn may_be_long(line: &str) -> bool {
    let is_one_literal = line.trim_start().starts_with(['"', '\'']) || line.contains("r#\"");
    line.contains("://") || is_one_literal
}

#[test]
fn no_line_of_code_is_longer_than_100_columns() {
    let mut long = Vec::new();
    for (path, text) in ["src", "tests", "benches", "examples"].into_iter().flat_map(sources) {
        let lines = text.lines().enumerate();
        let too_long =
            lines.filter(|(_, line)| line.chars().count() > COLUMNS_MAX && !may_be_long(line));
        long.extend(too_long.map(|(at, _)| format!("{path}:{}", at + 1)));
    }
    for path in ["Cargo.toml", "config/default.toml"] {
        let text = read(path);
        let is_long =
            text.lines().any(|line| line.chars().count() > COLUMNS_MAX && line.starts_with('#'));
        long.extend(is_long.then(|| path.to_owned()));
    }
    assert!(long.is_empty(), "{} lines are too long: {long:#?}", long.len());
}

/// The doc comments of a file: consecutive lines are one comment.
fn doc_comments(text: &str) -> Vec<String> {
    let mut comments = vec![String::new()];
    for line in text.lines().map(str::trim_start) {
        match line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) {
            Some(words) => comments.last_mut().unwrap().push_str(words),
            None => comments.push(String::new()),
        }
    }
    comments.retain(|comment| !comment.is_empty());
    comments
}

#[test]
fn doc_comments_say_more_than_the_name_below_them() {
    let mut empty = Vec::new();
    for (path, text) in sources("src") {
        let comments = doc_comments(&text).into_iter();
        let short = comments.filter(|text| text.split_whitespace().count() <= WORDS_TOO_FEW);
        empty.extend(short.map(|text| format!("{path}:{text}")));
    }
    assert!(empty.is_empty(), "{} doc comments say nothing: {empty:#?}", empty.len());
}
