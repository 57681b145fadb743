//! What a group goes on with when its patterns change: what earlier rows have not finished goes to the row whose pattern
//! now covers it.
//!
//! A program has no two subscriptions of a group that overlap. So a row that overlaps with a subscription of its group is
//! of an earlier version of the program. Of each topic one row says how far the group has come; where a row hands a
//! topic over, it says so itself, so that nothing is handled twice and nothing is dropped.

use crate::reader::{head, topics};
use eventbus_core::Pattern;
use eventbus_core::log;
use eventbus_core::printable::printable;
use rusqlite::{Connection, OptionalExtension};
use serde_json::json;

/// How far a group has come on parts of a row's pattern, where that is not as far as the row as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts(Vec<Layer>);

/// Parts of a pattern, each with the place up to which it is settled, or none where another row has it. The last one that
/// covers a topic counts.
type Layer = Vec<(Pattern, Option<i64>)>;

impl Parts {
    /// As they are written; nothing, where there are none.
    pub(crate) fn parse(text: Option<&str>) -> Option<Self> {
        let Some(text) = text else { return Some(Self::default()) };
        let layers: Vec<Vec<(String, Option<i64>)>> = serde_json::from_str(text).ok()?;
        let layer = |layer: Vec<(String, Option<i64>)>| {
            layer
                .into_iter()
                .map(|(part, at)| Some((Pattern::new(part).ok()?, at)))
                .collect::<Option<Layer>>()
        };
        layers.into_iter().map(layer).collect::<Option<_>>().map(Self)
    }

    /// As it is written.
    pub(crate) fn text(&self) -> Option<String> {
        let layer =
            |layer: &Layer| layer.iter().map(|(part, at)| json!([part.as_str(), at])).collect::<Vec<_>>();
        (!self.0.is_empty()).then(|| json!(self.0.iter().map(layer).collect::<Vec<_>>()).to_string())
    }

    /// Up to where everything on `topic` is settled that has no row, where the whole is settled up to `whole`; none:
    /// another row has the topic.
    pub(crate) fn reached(&self, topic: &str, whole: i64) -> Option<i64> {
        let said =
            |layer: &Layer| layer.iter().rev().find(|(part, _)| part.matches(topic)).map(|(_, at)| *at);
        let mut said = self.0.iter().filter_map(said).peekable();
        match said.peek() {
            None => Some(whole),
            // Where two rows had it, the one that is behind counts.
            Some(_) => said.flatten().min().map(|at| at.max(whole)),
        }
    }

    /// Another row has `part` from now on.
    fn hand_over(&mut self, part: &Pattern) {
        for layer in &mut self.0 {
            layer.retain(|(earlier, _)| !covers(part, earlier));
            layer.push((part.clone(), None));
        }
        self.0.retain(|layer| {
            layer.iter().any(|(_, at)| at.is_some()) || layer.iter().any(|(other, _)| other != part)
        });
        self.0.push(vec![(part.clone(), None)]);
    }

    /// Everything that is here, and not with another row, goes on behind `position`.
    pub(crate) fn seek(&mut self, position: i64) {
        self.0.iter_mut().flatten().filter_map(|(_, at)| at.as_mut()).for_each(|at| *at = position);
    }

    /// Whether another row has some part.
    pub(crate) fn is_handed_over(&self) -> bool {
        self.0.iter().any(|layer| layer.iter().all(|(_, at)| at.is_none()))
    }

    /// What is said of `part`, where the whole is settled up to `whole`.
    fn within(&self, part: &Pattern, whole: i64) -> Vec<Layer> {
        let mut layers = vec![vec![(part.clone(), Some(whole))]];
        for layer in &self.0 {
            let inside = layer.iter().filter_map(|(other, at)| Some((intersection(part, other)?, *at)));
            let inside: Layer = inside.map(|(part, at)| (part, at.map(|at| at.max(whole)))).collect();
            layers[0].extend(inside.iter().map(|(part, _)| (part.clone(), None)));
            layers.push(inside);
        }
        // What is covered by what comes later says nothing, and neither does a layer without a place.
        for layer in &mut layers {
            let mut later: Vec<Pattern> = Vec::new();
            layer.reverse();
            layer.retain(|(part, _)| {
                let says = !later.iter().any(|later| covers(later, part));
                later.push(part.clone());
                says
            });
            layer.reverse();
        }
        layers.retain(|layer| layer.iter().any(|(_, at)| at.is_some()));
        layers
    }

    /// Puts together what several rows say of one pattern: up to where everything is settled, and the parts that are
    /// further.
    fn join(layers: Vec<Layer>) -> Option<(i64, Self)> {
        let places = || layers.iter().flatten().filter_map(|(_, at)| *at);
        let (first, last) = (places().min()?, places().max()?);
        Some((first, if first == last { Self::default() } else { Self(layers) }))
    }
}

/// The topics that both patterns cover, as one pattern.
fn intersection(left: &Pattern, right: &Pattern) -> Option<Pattern> {
    let (mut left, mut right) = (left.as_str().split('.'), right.as_str().split('.'));
    let mut both = Vec::new();
    loop {
        match (left.next(), right.next()) {
            (None, None) => return Pattern::new(both.join(".")).ok(),
            (None, _) | (_, None) => return None,
            (Some(">"), Some(rest)) => {
                both.push(rest);
                both.extend(right);
                return Pattern::new(both.join(".")).ok();
            }
            (Some(rest), Some(">")) => {
                both.push(rest);
                both.extend(left);
                return Pattern::new(both.join(".")).ok();
            }
            (Some("*"), Some(segment)) | (Some(segment), Some("*")) => both.push(segment),
            (Some(one), Some(other)) if one == other => both.push(one),
            _ => return None,
        }
    }
}

/// Whether `one` covers all that `other` covers.
fn covers(one: &Pattern, other: &Pattern) -> bool {
    intersection(one, other).as_ref() == Some(other)
}

/// A row of a group.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) id: i64,
    pub(crate) pattern: Pattern,
    pub(crate) cursor: i64,
    pub(crate) reached: i64,
    pub(crate) parts: Parts,
}

/// A row that cannot be read as what was written.
#[derive(Debug)]
pub(crate) struct Damaged;

/// What is asked of the file, where a row may be damaged.
type Read<T> = rusqlite::Result<Result<T, Damaged>>;

/// The rows of `group` that overlap with `pattern`, its own one included.
fn overlapping(connection: &Connection, group: &str, pattern: &Pattern) -> Read<Vec<Row>> {
    let mut statement = connection.prepare_cached(
        "select id, pattern, cursor, reached, parts, intact from subscription where \"group\" = ?1 order by id",
    )?;
    let mut found = statement.query([group])?;
    let mut rows = Vec::new();
    let head = head(connection)?;
    while let Some(row) = found.next()? {
        let other = Pattern::new(String::from_utf8_lossy(row.get_ref(1)?.as_bytes()?)).ok();
        if other.as_ref().is_some_and(|other| !other.overlaps(pattern)) {
            continue;
        }
        let (cursor, reached): (i64, i64) = (row.get(2)?, row.get(3)?);
        let parts = Parts::parse(row.get_ref(4)?.as_str_or_null().ok().flatten());
        match (other, parts, row.get(5)?) {
            (Some(pattern), Some(parts), true) if cursor <= reached && reached <= head => {
                rows.push(Row { id: row.get(0)?, pattern, cursor, reached, parts });
            }
            _ => return Ok(Err(Damaged)),
        }
    }
    Ok(Ok(rows))
}

/// The row of `group` on `pattern`; where there is none, a new one that begins at `start`, or where earlier rows are.
/// `true`: it has begun at `start`.
pub(crate) fn find_or_begin(
    connection: &Connection,
    group: &str,
    pattern: &Pattern,
    start: i64,
) -> Read<(i64, bool)> {
    let known = connection
        .prepare_cached("select id from subscription where \"group\" = ?1 and pattern = ?2")?
        .query_row((group, pattern.as_str()), |row| row.get(0))
        .optional()?;
    if let Some(known) = known {
        return Ok(Ok((known, false)));
    }
    let rows = match overlapping(connection, group, pattern)? {
        Ok(rows) => rows,
        Err(damaged) => return Ok(Err(damaged)),
    };
    let mut parts = Parts::default();
    for part in rows.iter().filter_map(|row| intersection(pattern, &row.pattern)) {
        parts.hand_over(&part);
    }
    let cursor = rows.iter().map(|row| row.cursor).min().unwrap_or(start);
    let reached = rows.iter().map(|row| row.reached).min().unwrap_or(start);
    connection
        .prepare_cached(
            "insert into subscription (\"group\", pattern, cursor, reached, parts) values (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute((group, pattern.as_str(), cursor, reached, parts.text()))?;
    Ok(Ok((connection.last_insert_rowid(), rows.is_empty())))
}

/// The rows that have to be free before `pattern` of `group` is handled.
pub(crate) fn ids(connection: &Connection, group: &str, pattern: &Pattern) -> rusqlite::Result<Vec<i64>> {
    let mut statement =
        connection.prepare_cached("select id, pattern from subscription where \"group\" = ?1")?;
    let mut found = statement.query([group])?;
    let mut ids = Vec::new();
    while let Some(row) = found.next()? {
        let other = Pattern::new(String::from_utf8_lossy(row.get_ref(1)?.as_bytes()?));
        if other.is_ok_and(|other| other.overlaps(pattern)) {
            ids.push(row.get(0)?);
        }
    }
    Ok(ids)
}

/// Gives the row `own`, on `pattern`, what earlier rows of its group have not finished on that pattern, and tells how far
/// it has come then. An earlier row that has nothing left is removed.
pub(crate) fn inherit(connection: &Connection, group: &str, pattern: &Pattern, own: i64) -> Read<Row> {
    let rows = match overlapping(connection, group, pattern)? {
        Ok(rows) => rows,
        Err(damaged) => return Ok(Err(damaged)),
    };
    let (mut own, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(|row| row.id == own);
    let Some(own) = own.pop() else { return Err(rusqlite::Error::QueryReturnedNoRows) };
    if others.is_empty() && own.parts == Parts::default() {
        return Ok(Ok(own));
    }
    let mut layers = Vec::new();
    let mut cursor = None;
    for row in others.iter().chain([&own]) {
        let Some(part) = intersection(pattern, &row.pattern) else { continue };
        let said = row.parts.within(&part, row.reached);
        if !said.is_empty() {
            cursor = Some(cursor.map_or(row.cursor, |cursor: i64| cursor.min(row.cursor)));
        }
        layers.extend(said);
    }
    let (reached, parts) = Parts::join(layers).unwrap_or((own.reached, Parts::default()));
    let cursor = cursor.unwrap_or(own.cursor).min(reached);
    connection.execute(
        "update subscription set cursor = ?2, reached = ?3, parts = ?4 where id = ?1",
        (own.id, cursor, reached, parts.text()),
    )?;
    for row in &others {
        hand_over(connection, group, row, own.id, pattern)?;
    }
    // What is beyond where the row has come to is open besides, as what was published again is.
    connection.execute(
        "update delivery set republished = 2 where subscription = ?1 and offset > ?2 and not republished",
        (own.id, reached),
    )?;
    if !others.is_empty() {
        let earlier: Vec<_> = others.iter().map(|row| row.pattern.as_str()).collect();
        log::info!(
            target: "eventbus", group = %printable(group), pattern = %printable(pattern), earlier = %printable(earlier.join(", ")),
            "the patterns of the group were changed; this one goes on where the earlier ones were"
        );
    }
    Ok(Ok(Row { cursor, reached, parts, ..own }))
}

/// Gives what `row` has not finished on `pattern` to the row `heir`.
fn hand_over(
    connection: &Connection,
    group: &str,
    row: &Row,
    heir: i64,
    pattern: &Pattern,
) -> rusqlite::Result<()> {
    let Some(part) = intersection(pattern, &row.pattern) else { return Ok(()) };
    let covered = json!(topics(connection, &part)?).to_string();
    let parameters = (row.id, &covered, heir);
    connection.execute(
        "insert or ignore into delivery \
         (subscription, offset, attempt, first_failed, last_failed, due, republished, payload, content) \
         select ?3, offset, attempt, first_failed, last_failed, due, republished, payload, content \
         from delivery d where subscription = ?1 and \
         (select topic from event e where e.offset = d.offset) in (select value from json_each(?2))",
        parameters,
    )?;
    connection.execute(
        "delete from delivery where subscription = ?1 and offset in \
         (select offset from delivery where subscription = ?3) and \
         (select topic from event e where e.offset = delivery.offset) in (select value from json_each(?2))",
        parameters,
    )?;
    let had_it = !row.parts.within(&part, row.reached).is_empty();
    let mut parts = row.parts.clone();
    parts.hand_over(&part);
    // Other subscriptions of the program may be about to begin, so a row that has just become empty waits for them: until
    // the group is taken the next time.
    let empty = || {
        Ok::<_, rusqlite::Error>(
            unfinished(connection, &row.pattern, row.id, row.reached, &parts)?.count == 0,
        )
    };
    if covers(pattern, &row.pattern) || (!had_it && empty()?) {
        give_back(connection, group, row, heir, &parts)?;
        connection.execute("delete from subscription where id = ?1", [row.id])?;
    } else {
        connection.execute(
            "update subscription set parts = ?2, owner = null where id = ?1",
            (row.id, parts.text()),
        )?;
    }
    Ok(())
}

/// Lets the rows from which `row` once had something have what is left of it: they know how far it has come.
fn give_back(
    connection: &Connection,
    group: &str,
    row: &Row,
    heir: i64,
    parts: &Parts,
) -> rusqlite::Result<()> {
    let Ok(others) = overlapping(connection, group, &row.pattern)? else { return Ok(()) };
    for mut other in others.into_iter().filter(|other| other.id != row.id && other.id != heir) {
        let Some(part) = intersection(&other.pattern, &row.pattern) else { continue };
        let left = parts.within(&part, row.reached);
        if !left.is_empty() {
            other.parts.0.extend(left);
            connection.execute(
                "update subscription set parts = ?2 where id = ?1",
                (other.id, other.parts.text()),
            )?;
        }
    }
    Ok(())
}

/// Lets a row go on behind `position`, with what it has.
pub(crate) fn seek(connection: &Connection, row: i64, position: i64) -> rusqlite::Result<()> {
    let parts: Option<String> = connection
        .prepare_cached("select parts from subscription where id = ?1")?
        .query_row([row], |row| row.get(0))?;
    let mut parts = Parts::parse(parts.as_deref()).unwrap_or_default();
    parts.seek(position);
    connection.execute(
        "update subscription set cursor = ?2, reached = ?2, parts = ?3 where id = ?1",
        (row, position, parts.text()),
    )?;
    Ok(())
}

/// Moves rows of earlier patterns on that have nothing left, so that they hold up no retention.
pub(crate) fn move_on(connection: &Connection) -> rusqlite::Result<()> {
    let mut statement = connection.prepare_cached(
        "select id, pattern, reached, parts from subscription where parts is not null and owner is null",
    )?;
    let mut found = statement.query([])?;
    let head = head(connection)?;
    while let Some(row) = found.next()? {
        let pattern = Pattern::new(String::from_utf8_lossy(row.get_ref(1)?.as_bytes()?));
        let parts = Parts::parse(row.get_ref(3)?.as_str_or_null()?);
        let (Ok(pattern), Some(parts)) = (pattern, parts) else { continue };
        let (id, reached): (i64, i64) = (row.get(0)?, row.get(2)?);
        if parts.is_handed_over() && unfinished(connection, &pattern, id, reached, &parts)?.count == 0 {
            connection
                .execute("update subscription set cursor = ?2, reached = ?2 where id = ?1", (id, head))?;
        }
    }
    Ok(())
}

/// What a row has yet to settle.
pub(crate) struct Unfinished {
    /// How many deliveries and events.
    pub(crate) count: u64,
    /// The place of the first one.
    pub(crate) first: Option<i64>,
}

impl Unfinished {
    fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { count: row.get(0)?, first: row.get(1)? })
    }
}

/// What a row has yet to settle.
pub(crate) fn unfinished(
    connection: &Connection,
    pattern: &Pattern,
    row: i64,
    reached: i64,
    parts: &Parts,
) -> rusqlite::Result<Unfinished> {
    let mut unfinished = connection
        .prepare_cached("select count(*), min(offset) from delivery where subscription = ?1")?
        .query_row([row], Unfinished::read)?;
    for topic in topics(connection, pattern)? {
        let name: String = connection
            .prepare_cached("select name from topic where id = ?1")?
            .query_row([topic], |row| row.get(0))?;
        if let Some(reached) = parts.reached(&name, reached) {
            let of_topic = connection
                .prepare_cached("select count(*), min(offset) from event where topic = ?1 and offset > ?2")?
                .query_row((topic, reached), Unfinished::read)?;
            unfinished.count += of_topic.count;
            unfinished.first = unfinished.first.into_iter().chain(of_topic.first).min();
        }
    }
    Ok(unfinished)
}
