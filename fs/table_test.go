package fs

import "testing"

// TestRowNumbers expects that every row is found by its number.
func TestRowNumbers(t *testing.T) {
	for i, f := range rows {
		node := nodeID(1<<40-1, f.number, 1<<16-1)
		serial, row, param := splitID(node)
		if int(f.number) != i || row != f || serial != 1<<40-1 || param != 1<<16-1 {
			t.Errorf("row %d, %s, is found as %d, %v, %d", i, f.docPath(), serial, row, param)
		}
	}
	if _, row, _ := splitID(nodeID(1, maxRow, 0)); row != nil {
		t.Errorf("a number beyond the table is %s", row.docPath())
	}
}

// TestTooManyRows expects that a table with more rows than node numbers can hold is refused.
func TestTooManyRows(t *testing.T) {
	kept, keptWatched := rows, watched
	defer func() { rows, watched = kept, keptWatched }()
	rows = nil
	root := &file{kind: dir, files: make([]file, maxRow)}
	root.enter(root) // the last that fit
	defer func() {
		if recover() == nil {
			t.Error("a row got the number of another")
		}
	}()
	new(file).enter(root)
}
