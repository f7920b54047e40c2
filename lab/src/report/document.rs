//! What a report says, free of how it is written: the Markdown and the HTML are two renderings of one document.

use super::chart::Chart;

/// A whole report. Every text is plain: renderings escape it.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) title: String,
    /// When, and by which command.
    pub(super) lead: String,
    /// The findings in plain sentences.
    pub(super) verdicts: Vec<Verdict>,
    pub(super) sections: Vec<Section>,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    pub(super) tone: Tone,
    /// The number the sentence is about, such as `0.64×`.
    pub(super) figure: Option<String>,
    pub(super) sentence: String,
}

/// What a finding is; written as a word, not only as a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tone {
    /// Every round agrees, in favour.
    Better,
    /// Every round agrees, against.
    Worse,
    /// The rounds do not agree, or there are too few.
    Open,
    /// A number for scale, neither good nor bad.
    Fact,
    /// Something to know before believing a number.
    Caution,
}

impl Tone {
    /// The word people read.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Open => "not settled",
            Self::Fact => "for scale",
            Self::Caution => "caution",
        }
    }

    /// Class of the HTML element.
    pub(super) fn class(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::Open => "open",
            Self::Fact => "fact",
            Self::Caution => "caution",
        }
    }
}

/// A heading and what is under it.
#[derive(Debug, Default)]
pub(super) struct Section {
    pub(super) title: String,
    pub(super) blocks: Vec<Block>,
}

/// A piece of a section.
#[derive(Debug)]
pub(super) enum Block {
    /// A heading within the section.
    Heading(String),
    Text(String),
    List(Vec<String>),
    Table(Table),
    /// A long table that HTML folds away.
    Folded(Table),
    /// Charts that stand side by side where there is room. Only in HTML; a table with the same numbers follows.
    Charts(Vec<Chart>),
}

/// A table whose first column names the rows.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) caption: String,
    pub(super) head: Vec<Column>,
    /// As many cells as `head` in each.
    pub(super) rows: Vec<Vec<String>>,
}

/// A column.
#[derive(Debug, Clone)]
pub(super) struct Column {
    pub(super) title: String,
    /// Numbers are aligned right.
    pub(super) number: bool,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(caption: impl Into<String>) -> Self {
        Self { caption: caption.into(), ..Self::default() }
    }

    /// Adds a column of words.
    #[must_use]
    pub(super) fn words(mut self, title: impl Into<String>) -> Self {
        self.head.push(Column { title: title.into(), number: false });
        self
    }

    /// Adds a column of numbers.
    #[must_use]
    pub(super) fn numbers(mut self, title: impl Into<String>) -> Self {
        self.head.push(Column { title: title.into(), number: true });
        self
    }

    /// Adds a row; one too short is filled with dashes.
    pub(super) fn row(&mut self, mut cells: Vec<String>) {
        debug_assert!(cells.len() <= self.head.len(), "a row of {} has a cell without a column", self.caption);
        cells.resize(self.head.len(), "–".into());
        self.rows.push(cells);
    }
}

impl Section {
    /// An empty section.
    pub(super) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), blocks: Vec::new() }
    }

    /// Adds a paragraph.
    pub(super) fn text(&mut self, text: impl Into<String>) {
        self.blocks.push(Block::Text(text.into()));
    }

    /// Adds a table that has rows.
    pub(super) fn table(&mut self, table: Table) {
        if !table.rows.is_empty() {
            self.blocks.push(Block::Table(table));
        }
    }

    /// Adds charts, if any.
    pub(super) fn charts(&mut self, charts: Vec<Chart>) {
        if !charts.is_empty() {
            self.blocks.push(Block::Charts(charts));
        }
    }
}
