package yocto

import (
	"crypto/md5"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Unknown stands for a licence that [identify] does not recognise.
const Unknown = "Unknown"

// License is one licence file of a module.
type License struct {
	// File is the path in the module cache.
	File string
	// MD5 is that of the content, in hexadecimal: what LIC_FILES_CHKSUM has.
	MD5 string
	// SPDX is the identifier of the licence, or Unknown.
	SPDX string
}

// String is the entry of LIC_FILES_CHKSUM; the recipe keeps the module cache in
// pkg/mod of its sources.
func (l License) String() string {
	return fmt.Sprintf("file://pkg/mod/%s;md5=%s;spdx=%s", l.File, l.MD5, url.QueryEscape(l.SPDX))
}

// Licences of documentation (LICENSE.docs) and Go files of that name do not count:
// neither is in the program.
var licenseName = regexp.MustCompile(`(?i)^(licen[cs]e|copying|copyright|unlicense)([._-].*)?$`)

// licenseFiles finds what each package is licensed under: the files in the nearest
// folder that has some, up to the top of its module. Some modules carry code of
// others with a licence of its own.
func licenseFiles(packages []Package, cache string) ([]License, error) {
	found := map[string]License{}
	for _, p := range packages {
		if p.Module == nil || p.Module.Main {
			continue
		}
		files, err := nearestLicenses(p.Dir, p.Module.Dir)
		if err != nil {
			return nil, err
		}
		if len(files) == 0 {
			return nil, fmt.Errorf("module %s %s has no licence file", p.Module.Path, p.Module.Version)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			rel, err := filepath.Rel(cache, file)
			if err != nil {
				return nil, err
			}
			sum := md5.Sum(data)
			found[rel] = License{rel, hex.EncodeToString(sum[:]), identify(string(data))}
		}
	}
	list := make([]License, 0, len(found))
	for _, l := range found {
		list = append(list, l)
	}
	slices.SortFunc(list, func(a, b License) int { return strings.Compare(a.File, b.File) })
	return list, nil
}

func nearestLicenses(dir, top string) ([]string, error) {
	for {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		var files []string
		for _, e := range entries {
			if e.Type().IsRegular() && licenseName.MatchString(e.Name()) && !slices.Contains([]string{".go", ".docs"}, filepath.Ext(e.Name())) {
				files = append(files, filepath.Join(dir, e.Name()))
			}
		}
		if len(files) > 0 || dir == top {
			return files, nil
		}
		dir = filepath.Dir(dir)
	}
}

// identify recognises the licences that Go modules usually have, by sentences that
// only they contain. A new one is added here, not guessed.
func identify(text string) string {
	text = strings.ToLower(strings.Join(strings.Fields(text), " "))
	for _, known := range [][2]string{
		{"apache license version 2.0", "Apache-2.0"},
		{"apache license, version 2.0", "Apache-2.0"},
		{"mozilla public license version 2.0", "MPL-2.0"},
		{"mozilla public license, version 2.0", "MPL-2.0"},
		{"permission to use, copy, modify, and/or distribute this software for any purpose", "ISC"},
		{"permission to use, copy, modify, and distribute this software for any purpose", "ISC"},
		{"free and unencumbered software released into the public domain", "Unlicense"},
		{"permission is hereby granted, free of charge, to any person obtaining", "MIT"},
	} {
		if strings.Contains(text, known[0]) {
			return known[1]
		}
	}
	if strings.Contains(text, "redistribution and use in source and binary forms") {
		if regexp.MustCompile(`may (not )?be used to endorse|endorse or promote`).MatchString(text) {
			return "BSD-3-Clause"
		}
		return "BSD-2-Clause"
	}
	return Unknown
}

// formatLicenses makes the content of LicensesFile.
func formatLicenses(files []License) string {
	var names []string
	for _, l := range files {
		names = append(names, l.SPDX)
	}
	slices.Sort(names)
	sum := assignment("LIC_FILES_CHKSUM", files)
	return notice + "LICENSE += \"& " + strings.Join(slices.Compact(names), " & ") + "\"\n\n" + strings.TrimPrefix(sum, notice)
}
