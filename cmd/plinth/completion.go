package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// completions are scripts that ask the program itself what comes next.
var completions = map[string]string{
	"bash": `_plinth() {
  local cur words
  cur=${COMP_WORDS[COMP_CWORD]}
  words=$("${COMP_WORDS[@]:0:COMP_CWORD}" $([[ $cur == -* ]] && printf %s "$cur") --generate-bash-completion 2>/dev/null)
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
}
complete -o bashdefault -o default -F _plinth plinth
`,
	"zsh": `#compdef plinth
_plinth() {
  local -a words_
  words_=("${(@f)$(${words[1,CURRENT-1]} --generate-bash-completion 2>/dev/null)}")
  compadd -a words_
}
compdef _plinth plinth
`,
	"fish": `complete -c plinth -f -a '(set -l w (commandline -opc); $w --generate-bash-completion 2>/dev/null)'
`,
}

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print a script that completes commands: source <(plinth completion bash)", ArgsUsage: "bash|zsh|fish",
		Action: func(c *cli.Context) error {
			args, err := arguments(c, "SHELL")
			if err != nil {
				return err
			}
			script, ok := completions[args[0]]
			if !ok {
				return fmt.Errorf("no completion for %q: there is bash, zsh and fish", args[0])
			}
			fmt.Print(script)
			return nil
		},
	}
}
