//! Rows under one another, for people: each column as wide as its widest cell, numbers to the right.

use std::fmt;

/// A table.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    name: &'static str,
    is_number: bool,
}

impl Column {
    pub(super) const fn text(name: &'static str) -> Self {
        Self { name, is_number: false }
    }

    pub(super) const fn number(name: &'static str) -> Self {
        Self { name, is_number: true }
    }
}

impl Table {
    pub(super) fn new(columns: impl Into<Vec<Column>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    /// Adds a row: a cell for each column.
    pub(super) fn push(&mut self, row: impl Into<Vec<String>>) {
        self.rows.push(row.into());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<String> = self.columns.iter().map(|column| column.name.to_owned()).collect();
        let lines = || std::iter::once(&names).chain(&self.rows);
        let width = |at: usize| lines().map(|line| line[at].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        for (number, line) in lines().enumerate() {
            let mut text = String::new();
            for ((cell, column), width) in line.iter().zip(&self.columns).zip(&widths) {
                if !text.is_empty() {
                    text.push_str("  ");
                }
                let padded =
                    if column.is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text.push_str(&padded);
            }
            let end = if number < self.rows.len() { "\n" } else { "" };
            write!(f, "{}{end}", text.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_must_be() {
        let mut table = Table::new([Column::text("SERVICE"), Column::number("PAID"), Column::text("STATE")]);
        table.push(["air".to_owned(), "1000 sat".to_owned(), "open".to_owned()]);
        table.push(["wetter über".to_owned(), "5 sat".to_owned(), String::new()]);
        let want = "SERVICE          PAID  STATE\nair          1000 sat  open\nwetter über     5 sat";
        assert_eq!(table.to_string(), want);
    }
}
