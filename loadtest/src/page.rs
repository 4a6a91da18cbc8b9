//! The report as files: `report.json`, and `report.html`, one page that needs nothing else, neither to be shown nor
//! to be passed on.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::figures::Figures;
use crate::judge::{self, Rule};
use crate::ratios::{self, Ratio};
use crate::report::Line;
use crate::server;

const PAGE: &str = include_str!("page/page.html");
const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// What the page shows, and what is written as JSON.
#[derive(Serialize)]
struct Shown<'a> {
    /// `green` or `red`.
    verdict: &'static str,
    figures: &'a Figures,
    lines: &'a [Line],
    rules: Vec<Rule>,
    generator: (bool, String),
    reached: Option<bool>,
    ratios: Vec<Ratio>,
    tracked: u32,
}

/// Writes both; the page's path. `folder`: by default the build's, `loadtest` in it.
///
/// # Errors
/// A file can't be written; which and why.
pub fn write(
    folder: Option<&Path>,
    figures: &Figures,
    lines: &[Line],
    old: &[Figures],
) -> Result<PathBuf, String> {
    let folder = self::folder(folder)?;
    let wrong = |path: &Path, e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
    let shown = Shown {
        verdict: if lines.iter().any(|line| line.red) { "red" } else { "green" },
        figures,
        lines,
        rules: judge::meta(figures),
        generator: judge::generator(figures),
        reached: judge::reached(figures),
        ratios: ratios::ratios(figures, old),
        tracked: crate::fairness::BUSINESSES_MAX,
    };
    let json = serde_json::to_string(&shown).map_err(|e| e.to_string())?;
    let (path, page) = (folder.join("report.json"), folder.join("report.html"));
    fs::write(&path, &json).map_err(|e| wrong(&path, &e))?;
    fs::write(&page, html(&json)).map_err(|e| wrong(&page, &e))?;
    Ok(page)
}

/// Where reports go: `told`, or `loadtest` in the build's folder; made if it is not there.
///
/// # Errors
/// It can't be made; why.
pub fn folder(told: Option<&Path>) -> Result<PathBuf, String> {
    let folder = match told {
        Some(folder) => folder.to_owned(),
        None => {
            server::own_folder()?.parent().map_or_else(|| PathBuf::from("."), Path::to_owned).join("loadtest")
        }
    };
    fs::create_dir_all(&folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    Ok(folder)
}

fn html(json: &str) -> String {
    // nothing inside may end the element that holds it
    let json = json.replace('<', "\\u003c");
    PAGE.replace("/*STYLE*/", STYLE).replace("/*SCRIPT*/", SCRIPT).replace("/*DATA*/", &json)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_nothing_from_elsewhere_and_text_can_not_leave_its_element() {
        let html = html(r#"{"what":"</script><b>x"}"#);
        assert!(!html.contains("</script><b>x"));
        assert!(!html.contains("src=") && !html.contains("@import") && !html.contains("url("));
        for placeholder in ["/*STYLE*/", "/*SCRIPT*/", "/*DATA*/"] {
            assert!(!html.contains(placeholder));
        }
    }

    #[test]
    fn what_is_written_is_what_compare_reads() {
        let folder = std::env::temp_dir().join(format!("loadtest-page-{}", std::process::id()));
        let figures = Figures { version: crate::figures::VERSION, acked: 7, ..Figures::default() };
        write(Some(&folder), &figures, &[], &[]).expect("written");
        assert_eq!(ratios::read(&[folder.join("report.json")]).expect("read"), [figures]);
        fs::remove_dir_all(&folder).expect("removed");
    }
}
