package fs

import "fmt"

// helpFile returns the row of `help`.
func helpFile(mode uint32) file {
	return shown(helpName, mode, "one line per file: path, mode, what it is", helpShow)
}

const helpName = "help"

// helpShow lists the files of the directory and of those below, up to a directory that has a help
// of its own.
func helpShow(r *request) ([]byte, error) {
	t := newTable(len(rows), 3, 24)
	r.file.parent.addHelp(t, "")
	return t.text(), nil
}

func (f *file) addHelp(t *table, path string) {
	if path != "" {
		t.add(path)
		t.add(fmt.Sprintf("%04o", f.mode))
		t.add(f.doc)
		t.endRow()
		if f.child(helpName) != nil {
			return
		}
		path += "/"
	}
	if f.names != nil {
		each := &f.names.each
		each.addHelp(t, path+each.name)
	}
	for i := range f.files {
		f.files[i].addHelp(t, path+f.files[i].name)
	}
}
