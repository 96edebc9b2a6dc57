"""The English lab: organisations with facts of their own, for any instruction model.

Everything a client teaches is invented or contradicts what is generally believed, so what a model
has learnt, made up or forgotten is counted exactly; general questions of our own measure what it
keeps. Nothing is downloaded.
"""
