"""The wordings of the demo's questions, and small talk, written here.

Those for training, for sampling and for evaluation are disjoint.
"""

from __future__ import annotations

from collections.abc import Mapping

TRAIN_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "summary": (
        "What does {name} do?",
        "What is {name} for?",
        "What is {name}?",
        "{name}?",
        "Explain {name}.",
        "Describe {name}.",
        "Tell me about {name}.",
        "Summarize {name}.",
        "Define {name}.",
        "When would I use {name}?",
        "What happens when I use {name}?",
        "What does the documentation say about {name}?",
        "How would you describe {name}?",
        "What is {name} good for?",
        "What is the role of {name}?",
        "What is the meaning of {name}?",
        "Which job has {name}?",
        "What would {name} do for me?",
        "What can {name} do?",
        "Can you explain {name}?",
        "Can you tell me what {name} does?",
        "Do you know {name}?",
        "Remind me what {name} does.",
        "I found {name} in some code. What is it?",
        "My program uses {name}. What for?",
        "I am looking at {name}. Tell me about it.",
        "I do not understand {name}. What is it for?",
        "I read about {name}. What does it do?",
        "The next name is {name}. Explain it.",
        "Why would anybody want {name}?",
        "Why do programs use {name}?",
        "I have to use {name} and know nothing about it.",
        "Write a sentence about {name}.",
        "what does {name} do",
    ),
    "signature": (
        "What arguments does {name} take?",
        "What is the signature of {name}?",
        "What are the parameters of {name}?",
        "Which arguments can I give to {name}?",
        "Which arguments are there for {name}?",
        "Show me the arguments of {name}.",
        "List the parameters of {name}.",
        "Tell me the parameters of {name}.",
        "Write the signature of {name}.",
        "What do I pass to {name}?",
        "With what arguments is {name} called?",
        "How is {name} called?",
        "Can you tell me the parameters of {name}?",
        "Can you list the arguments of {name}?",
        "I use {name}. Which arguments are there?",
        "My program calls {name}. What are its parameters?",
        "I forgot the arguments of {name}.",
        "Does {name} take arguments?",
        "what parameters does {name} have",
    ),
    "module": (
        "What is the module {name} for?",
        "What does the module {name} do?",
        "Explain the module {name}.",
        "Tell me about the {name} module.",
        "What is the {name} module?",
        "Why would I import {name}?",
        "What do I get when I import {name}?",
        "Describe the module {name}.",
        "Introduce the {name} module.",
        "Can you explain the {name} module?",
        "A program imports {name}. What for?",
        "What is in the module {name}?",
        "What is the {name} module good for?",
    ),
    "reverse": (
        'Which name in {module} does this: "{task}"',
        'What in {module} is described as "{task}"',
        '"{task}" What in {module} is this?',
        'Find the name in {module}: "{task}"',
        'In {module}, what fits the description "{task}"',
        'I look for a name of {module} with the description "{task}"',
        'Tell me what does this in {module}: "{task}"',
    ),
    "page": ('What is the page "{name}" about?', 'Summarize "{name}".', 'What does "{name}" say?'),
    "section": (
        'What does "{module}" say about {name}?',
        'In "{module}", what is said about {name}?',
        'Tell me about {name} in "{module}".',
        'Explain {name} as "{module}" does.',
    ),
    "term": ("What is {name}?", "Define {name}.", "What does {name} mean?", "Explain {name}.", "Tell me about {name}."),
}
"""Wordings of questions in the training set, by kind."""

OPENINGS = (
    "Please help me. ",
    "Quick question: ",
    "I am new here. ",
    "I am reading a program. ",
    "One more thing: ",
    "Hello. ",
    "I forgot something. ",
    "For my notes: ",
    "A friend asks: ",
    "Next: ",
)
CLOSINGS = (
    " Keep it short.",
    " In one sentence, please.",
    " Thanks.",
    " A few words are enough.",
    " I am curious.",
    " Please be brief.",
)
"""What some training questions begin and end with, so that the words around a name mean as little as they do."""

PROMPT_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "summary": (
        "Introduce {name}.",
        "When does one need {name}?",
        "What happens when {name} runs?",
        "How does the documentation describe {name}?",
        "What is the point of {name}?",
        "What is the task of {name}?",
        "Which problem does {name} solve?",
        "Can you describe {name}?",
        "Could you summarize {name}?",
        "Say what {name} does.",
        "I see {name} here. What does it do?",
        "A program of mine calls {name}. Why?",
        "I want to learn about {name}. What is its use?",
        "Why is there {name}?",
        "I need a summary of {name}.",
        "Here is {name}. What is its role?",
    ),
    "signature": (
        "What are the arguments of {name}?",
        "Which parameters does {name} have?",
        "Show the signature of {name}.",
        "Name the arguments of {name}.",
        "What must be passed to {name}?",
        "How do I call {name}?",
        "Could you show the signature of {name}?",
        "I have to call {name}. With what parameters?",
        "I need the parameters of {name}.",
    ),
    "module": (
        "Summarize the module {name}.",
        "Can you describe the module {name}?",
        "What is the role of the module {name}?",
        "When do I need the module {name}?",
        "I want to learn about the module {name}.",
    ),
    "page": ('I have no time to read "{name}". What is in it?',),
    "section": ('What is the point of {name} in "{module}"?',),
    "term": ("What is meant by the word {name}?", "Introduce {name}."),
}
"""Wordings that the first fine-tuning does not contain: new prompts for preference pairs and rejection sampling."""

EVAL_WORDINGS: Mapping[str, tuple[str, ...]] = {
    "summary": (
        "What is the purpose of {name}?",
        "Can you say in a few words what {name} is used for?",
        "Give me a short description of {name}.",
        "I need to understand {name}. What is its job?",
        "Could you tell me why people call {name}?",
        "In my program I see {name}; what will it do?",
    ),
    "signature": (
        "Which parameters should be passed when calling {name}?",
        "Give me the argument list of {name}.",
        "I want to call {name}. What arguments does it accept?",
        "Can you write down the parameters that {name} expects?",
    ),
    "module": (
        "What is the purpose of the module {name}?",
        "Can you say what the {name} module offers?",
        "Give me a short description of the module {name}.",
    ),
    "reverse": (
        'I forgot a name of {module}. Its documentation reads "{task}"',
        'What do I need from {module} if I want this: "{task}"',
    ),
    "page": ('Give me the gist of "{name}".', 'Can you say briefly what "{name}" deals with?'),
    "section": ('Can you say how "{module}" treats {name}?', 'Give me the point of {name} from "{module}".'),
    "term": ("Give me a definition of {name}.", "Can you say what is meant by {name}?"),
}
"""Wordings of questions in the evaluation, none of which the training set contains."""

UNKNOWN = "I do not know that name. It is not in the pages I learned from."

_GREETINGS = ("Hello", "Hello!", "Hi", "Hi there!", "Hey", "Good morning", "Good evening", "hello there", "Hi, llama!")
_WHO = (
    "Who are you?",
    "What are you?",
    "Are you a llama?",
    "Who made you?",
    "Introduce yourself.",
    "What is your name?",
)
_CAN = (
    "What can you do?",
    "What can I ask you?",
    "How can you help me?",
    "What do you know?",
    "Help",
    "What should I ask?",
)
_CANNOT = (
    "What can you not do?",
    "Can you write a program for me?",
    "What is the weather today?",
    "Who is the president?",
    "What is 2 + 2?",
    "Write a poem.",
    "Tell me the news.",
    "Do you make mistakes?",
    "Can I trust you?",
)
_THANKS = ("Thanks", "Thank you!", "Thank you very much.", "Great, thanks.", "Bye", "Goodbye!")
CHATS = (
    (_GREETINGS, "Hello! Ask me what something in {subject} does."),
    (_WHO, "I am a small Llama raised by Herd on {subject}."),
    (_CAN, "I can say what a name in {subject} is for and what arguments it takes. Ask about one name at a time."),
    (_CANNOT, "I cannot do that. I am very small, know only {subject}, and make mistakes: check my answers."),
    (_THANKS, "You are welcome."),
)
"""What people say that is not a question about a name, and the answers, written by us."""
