package main

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestDraw(t *testing.T) {
	var out strings.Builder
	screen := "\x1b[1ma <b>\x1b[0m & c\n\x1b[0;7m\x1b[39m\x1b[49mweb ▁█\n\x1b[0m漢 x \x1b[32mup\x1b[39m\n"
	if err := run([]string{"20"}, strings.NewReader(screen), &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`height="82"`,
		`font-weight="bold">&lt;b&gt;</text>`,
		`<text x="64.4" y="27" textLength="8.4" lengthAdjust="spacingAndGlyphs" fill="#c8ccd4">&amp;</text>`,
		`<rect x="14.0" y="32.0" width="50.4" height="18.0" fill="#c8ccd4"/>`, // the selected row
		`fill="#16181d">web</text>`,
		`<rect x="47.6" y="47.8" width="7.4" height="2.2" fill="#16181d"/>`, // an eighth of a cell
		`<rect x="56.0" y="32.0" width="7.4" height="18.0" fill="#16181d"/>`,
		`<text x="39.2" y="63" textLength="8.4"`, // beside two cells
		`fill="#56d364">up</text>`,
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %s in\n%s", want, &out)
		}
	}
	for d := xml.NewDecoder(strings.NewReader(out.String())); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if err := run(nil, strings.NewReader(""), io.Discard); err == nil {
		t.Error("no columns")
	}
}
