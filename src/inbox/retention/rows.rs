//! The steps of a round: each visits a bounded number of rows after the one where the last step ended, and removes those
//! that can go. Where it ended is `None` once there are no more.

use rusqlite::{CachedStatement, OptionalExtension, params};

use crate::inbox::tables::Tables;

/// Items that a step visits, and removes.
const ITEMS: usize = 256;
const ITEMS_REMOVED: usize = 32;
/// Commits that a step removes, and their bytes, one commit aside: each page of a body is visited.
const COMMITS_MAX: i64 = 16;
const COMMITS_BYTES: i64 = 64 << 10;
/// Turns that a step visits.
const TURNS_MAX: i64 = 16;
/// Lines of conversations that a step visits.
const LINES: i64 = 64;

/// A table whose rows grow in number with time: its first number, its last, and the time of the next one from a number on.
pub struct Ages {
    first: &'static str,
    last: &'static str,
    time: &'static str,
}

pub const COMMITS: Ages = Ages {
    first: "SELECT min(id) FROM commits",
    last: "SELECT max(id) FROM commits",
    time: "SELECT received_ms FROM commits WHERE id >= ?1 ORDER BY id LIMIT 1",
};
pub const TURNS: Ages = Ages {
    first: "SELECT min(id) FROM turns",
    last: "SELECT max(id) FROM turns",
    time: "SELECT stored_ms FROM turns WHERE id >= ?1 ORDER BY id LIMIT 1",
};

/// The highest number whose row is older than the cutoff or gone. What a clock that was ahead has written counts as old as
/// what came after it, once that is older than the cutoff for as long as the clock was wrong.
pub fn newest_before(tables: &Tables, ages: &Ages, cutoff: i64) -> rusqlite::Result<i64> {
    let connection = tables.connection();
    let end = |sql: &str| connection.prepare_cached(sql)?.query_row([], |r| r.get::<_, Option<i64>>(0));
    let (Some(first), Some(last)) = (end(ages.first)?, end(ages.last)?) else { return Ok(i64::MAX) };
    let (mut below, mut from) = (first - 1, last + 1);
    let mut at = connection.prepare_cached(ages.time)?;
    while from - below > 1 {
        let middle = below + (from - below) / 2;
        let time: Option<i64> = at.query_row([middle], |r| r.get(0)).optional()?;
        if time.is_some_and(|time| time < cutoff) {
            below = middle;
        } else {
            from = middle;
        }
    }
    Ok(below)
}

/// Finished items after the row `after`, with a timestamp (seconds) before `cutoff`, of commits up to `newest`.
pub fn items(
    tables: &Tables,
    after: (i64, i64),
    cutoff: i64,
    newest: i64,
) -> rusqlite::Result<(usize, Option<(i64, i64)>)> {
    let mut visited = tables.connection().prepare_cached(
        "SELECT timestamp, key, state > 2 AND commit_id <= ?4 FROM items
         WHERE (timestamp, key) > (?1, ?2) AND timestamp < ?3 ORDER BY timestamp, key LIMIT ?5",
    )?;
    let mut rows = visited.query(params![after.0, after.1, cutoff, newest, ITEMS as i64])?;
    let (mut last, mut count, mut removable) = (None, 0, 0);
    while removable < ITEMS_REMOVED
        && let Some(row) = rows.next()?
    {
        last = Some((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?));
        count += 1;
        removable += usize::from(row.get::<_, bool>(2)?);
    }
    drop(rows);
    if let Some(last) = last
        && removable > 0
    {
        tables
            .connection()
            .prepare_cached(
                "DELETE FROM items WHERE (timestamp, key) > (?1, ?2) AND (timestamp, key) <= (?3, ?4)
                 AND state > 2 AND commit_id <= ?5",
            )?
            .execute(params![after.0, after.1, last.0, last.1, newest])?;
    }
    let is_more = removable == ITEMS_REMOVED || count == ITEMS;
    Ok((removable, last.filter(|_| is_more)))
}

/// The first commit that an open item needs.
pub fn needed(tables: &Tables) -> rusqlite::Result<i64> {
    tables
        .connection()
        .prepare_cached("SELECT min(commit_id) FROM items INDEXED BY items_open WHERE state < 2")?
        .query_row([], |r| r.get::<_, Option<i64>>(0))
        .map(|needed| needed.unwrap_or(i64::MAX))
}

/// The oldest commits up to this one: how many went, and whether there may be more.
pub fn commits(tables: &Tables, up_to: i64) -> rusqlite::Result<(usize, bool)> {
    let mut oldest = tables
        .connection()
        .prepare_cached("SELECT id, length(bodies) FROM commits WHERE id <= ?1 ORDER BY id LIMIT ?2")?;
    let mut rows = oldest.query(params![up_to, COMMITS_MAX])?;
    let (mut last, mut count, mut bytes) = (None, 0, 0);
    while bytes < COMMITS_BYTES
        && let Some(row) = rows.next()?
    {
        last = Some(row.get::<_, i64>(0)?);
        count += 1;
        bytes += row.get::<_, i64>(1)?;
    }
    drop(rows);
    let Some(last) = last else { return Ok((0, false)) };
    let removed =
        tables.connection().prepare_cached("DELETE FROM commits WHERE id <= ?1")?.execute([last])?;
    Ok((removed, count == COMMITS_MAX || bytes >= COMMITS_BYTES))
}

/// Closed turns after the turn `after`, up to `newest`, with their replies.
pub fn turns(tables: &Tables, after: i64, newest: i64) -> rusqlite::Result<(usize, Option<i64>)> {
    let connection = tables.connection();
    let ids = connection
        .prepare_cached("SELECT id FROM turns WHERE id > ?1 AND id <= ?2 ORDER BY id LIMIT ?3")?
        .query_map(params![after, newest, TURNS_MAX], |r| r.get::<_, i64>(0))?
        .collect::<Result<Vec<i64>, _>>()?;
    let Some(last) = ids.last().copied() else { return Ok((0, None)) };
    // the next turn's number follows the last one's, also when that is gone
    let highest: Option<i64> =
        connection.prepare_cached("SELECT max(id) FROM turns")?.query_row([], |r| r.get(0))?;
    if let Some(highest) = highest {
        tables.set_last_turn(highest)?;
    }
    let range = |mut statement: CachedStatement<'_>| statement.execute(params![after, last]);
    range(connection.prepare_cached(
        "DELETE FROM replies WHERE turn IN (SELECT id FROM turns WHERE id > ?1 AND id <= ?2 AND state = 1)",
    )?)?;
    let removed =
        range(connection.prepare_cached("DELETE FROM turns WHERE id > ?1 AND id <= ?2 AND state = 1")?)?;
    Ok((removed, (ids.len() as i64 == TURNS_MAX).then_some(last)))
}

/// Lines of conversations after the row `after` that were said before the cutoff.
pub fn memory(
    tables: &Tables,
    after: &(String, i64),
    cutoff: i64,
) -> rusqlite::Result<(usize, Option<(String, i64)>)> {
    let mut visited = tables.connection().prepare_cached(
        "SELECT session, seq, said_ms < ?3 FROM memory WHERE (session, seq) > (?1, ?2)
         ORDER BY session, seq LIMIT ?4",
    )?;
    let lines = visited
        .query_map(params![after.0, after.1, cutoff, LINES], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<Result<Vec<(String, i64, bool)>, _>>()?;
    let is_more = lines.len() as i64 == LINES;
    let removable = lines.iter().filter(|(_, _, is_old)| *is_old).count();
    let last = lines.into_iter().last().map(|(session, seq, _)| (session, seq));
    if let Some((session, seq)) = &last
        && removable > 0
    {
        tables
            .connection()
            .prepare_cached(
                "DELETE FROM memory WHERE (session, seq) > (?1, ?2) AND (session, seq) <= (?3, ?4) AND said_ms < ?5",
            )?
            .execute(params![after.0, after.1, session, seq, cutoff])?;
    }
    Ok((removable, last.filter(|_| is_more)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store;

    /// However many stay, a step looks at few: it runs while everybody waits.
    #[test]
    fn a_step_begins_where_the_last_one_ended() {
        let folder = tempfile::tempdir().expect("a folder");
        let connection = store::open(folder.path()).expect("opens");
        connection
            .execute_batch(
                "WITH RECURSIVE s(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM s WHERE i < 1000)
                 INSERT INTO items (timestamp, key, kind, state, number, conversation, commit_id, body, entry, change, nth)
                 SELECT 0, i, 10, 3, 7, 0, iif(i > 990, 1, 5), 0, 0, 0, 0 FROM s;",
            )
            .expect("inserted");
        for sql in [
            "SELECT 1 FROM items WHERE (timestamp, key) > (1, 2) AND timestamp < 3 ORDER BY timestamp, key LIMIT 9",
            "DELETE FROM items WHERE (timestamp, key) > (1, 2) AND (timestamp, key) <= (3, 4) AND state > 2",
            "SELECT 1 FROM memory WHERE (session, seq) > ('a', 2) ORDER BY session, seq LIMIT 9",
        ] {
            let plan: String = connection
                .query_row(&format!("EXPLAIN QUERY PLAN {sql}"), [], |r| r.get("detail"))
                .expect("a plan");
            let by_both = plan.contains("(timestamp,key)>(?,?)") || plan.contains("(session,seq)>(?,?)");
            assert!(plan.contains("USING PRIMARY KEY") && by_both, "{plan}");
        }
        let tables = Tables::new(connection, 4 << 20).expect("taken over");
        let mut after = (-1, 0);
        for at in [256, 512, 768] {
            assert_eq!(items(&tables, after, 100, 1).expect("swept"), (0, Some((0, at))));
            after = (0, at);
        }
        assert_eq!(items(&tables, after, 100, 1).expect("swept"), (10, None));
        let left: i64 =
            tables.connection().query_row("SELECT count(*) FROM items", [], |r| r.get(0)).expect("counted");
        assert_eq!(left, 990);
    }
}
