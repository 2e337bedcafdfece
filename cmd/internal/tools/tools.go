//go:build tools

// Package tools keeps what the Makefile runs in go.mod, so that their versions are pinned.
package tools

import (
	_ "github.com/cpuguy83/go-md2man/v2"
	_ "honnef.co/go/tools/cmd/staticcheck"
)
