package fs

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"banger/internal/printable"
)

// escape, sentence and cell make untrusted text printable, see package printable. A cell is a
// column that is not the last.
func escape(s string) string   { return printable.Escape(s) }
func sentence(s string) string { return printable.Sentence(s) }
func cell(s string) string     { return printable.Word(s) }

// table is text in columns. Every column but the last is padded with spaces, and no row ends in
// them. All cells share one slice, since there may be ten thousand rows.
type table struct {
	cells  []byte
	ends   []int // of each cell in cells, row after row
	rows   []int // count of cells up to the end of each row
	widths []int // by column, in characters
	begun  int   // cells of the rows that have ended
	start  int   // of the present cell
}

// newTable allocates a table. width is the expected length of a cell in bytes.
func newTable(rows, columns, width int) *table {
	return &table{
		cells: make([]byte, 0, rows*columns*width),
		ends:  make([]int, 0, rows*columns),
		rows:  make([]int, 0, rows),
	}
}

// add appends s, which the caller has escaped, and ends the cell.
func (t *table) add(s string) {
	t.cells = append(t.cells, s...)
	t.next()
}

// addInt and addFloat add a number without allocating a string; nil is shown as unknown.
func (t *table) addInt(v *int64) {
	if v == nil {
		t.add("-")
		return
	}
	t.cells = strconv.AppendInt(t.cells, *v, 10)
	t.next()
}

func (t *table) addFloat(v *float64) {
	if v == nil {
		t.add("-")
		return
	}
	t.cells = strconv.AppendFloat(t.cells, *v, 'f', 2, 64)
	t.next()
}

// next ends the present cell.
func (t *table) next() {
	width := utf8.RuneCount(t.cells[t.start:])
	if column := len(t.ends) - t.begun; column == len(t.widths) {
		t.widths = append(t.widths, width)
	} else {
		t.widths[column] = max(t.widths[column], width)
	}
	t.start = len(t.cells)
	t.ends = append(t.ends, t.start)
}

// endRow ends a row.
func (t *table) endRow() {
	t.begun = len(t.ends)
	t.rows = append(t.rows, t.begun)
}

// text returns the rows.
func (t *table) text() []byte {
	total := 0
	for _, w := range t.widths {
		total += w + 2
	}
	b := make([]byte, 0, len(t.cells)/4+total*len(t.rows))
	start, i := 0, 0
	for _, end := range t.rows {
		pad := 0
		for column := 0; i < end; column, i = column+1, i+1 {
			c := t.cells[start:t.ends[i]]
			start = t.ends[i]
			if len(c) == 0 {
				pad += t.widths[column] + 2
				continue
			}
			for range pad {
				b = append(b, ' ')
			}
			b = append(b, c...)
			pad = t.widths[column] - utf8.RuneCount(c) + 2
		}
		b = append(b, '\n')
	}
	return b
}

// pair is one line of a flat keyed file; value is a string, a number or a bool, for the JSON twin.
type pair struct {
	key   string
	value any
	text  string // in the text file, if not fmt.Sprint(value)
}

func flat(pairs []pair) []byte {
	var b bytes.Buffer
	for _, p := range pairs {
		text := p.text
		if text == "" {
			text = fmt.Sprint(p.value)
		}
		b.WriteString(strings.TrimRight(p.key+" "+text, " "))
		b.WriteByte('\n')
	}
	return b.Bytes()
}

// object returns the pairs as a JSON object, in the same order.
func object(pairs []pair) ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, p := range pairs {
		if i > 0 {
			b.WriteByte(',')
		}
		value, err := json.Marshal(p.value)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "%q:%s", p.key, value)
	}
	b.WriteString("}\n")
	return printable.JSON(b.Bytes()), nil
}

func jsonLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	return append(printable.JSON(b), '\n'), err
}

// line returns the content of a file of one value; it is empty if s is.
func line(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	return []byte(s + "\n"), nil
}
