package host

import "os"

// zeroStep is the block of most file systems, in bytes.
const zeroStep = 4096

// HoleWriter writes to a file from At on. It leaves out the zeros at both ends of a write, in whole
// blocks, so that they become holes in a file that is empty there. The caller sets the file's
// length at the end.
type HoleWriter struct {
	File *os.File
	At   int64
}

func (w *HoleWriter) Write(p []byte) (int, error) {
	n, at := len(p), w.At
	w.At += int64(n)
	for len(p) >= zeroStep && Zeros(p[:zeroStep]) {
		p, at = p[zeroStep:], at+zeroStep
	}
	for len(p) > 0 {
		last := p[(len(p)-1)/zeroStep*zeroStep:]
		if !Zeros(last) {
			_, err := w.File.WriteAt(p, at)
			return n, err
		}
		p = p[:len(p)-len(last)]
	}
	return n, nil
}
